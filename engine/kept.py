"""Finished tensors kept in memory within a budget, for layers that are asked for again and again.

A sampler that does not hold its model on the card asks for the same layers in the same order at every step. What was not asked for
the longest is then the next to be wanted: a cache that drops it first finds nothing at all as soon as the budget is too small.
So a tensor gives way only when it was not asked for since the newcomer was asked for the last time, that is, for a whole turn.
"""
import torch

Stored = dict[str, torch.Tensor]                   # suffix -> tensor, as it would lie in a file


class Kept:
    """At most `budget` bytes of stored tensors, by key. Not safe for several threads: the owner locks."""

    def __init__(self, budget: int):
        self.budget, self.nbytes = budget, 0
        self.tensors: dict[str, Stored] = {}
        self._turn = 0
        self._asked: dict[str, tuple[int, int]] = {}   # key -> turns of the last two times it was asked for; 0: never

    def find(self, key: str) -> Stored | None:
        """What is kept of `key`, not a copy, or None."""
        self._turn += 1
        self._asked[key] = (self._asked.get(key, (0, 0))[1], self._turn)
        return self.tensors.get(key)

    def offer(self, key: str, stored: Stored) -> None:
        """Keep `stored`, on the CPU, if there is room, or if what went out of use leaves enough. Call after `find` said None."""
        need, before = _size(stored), self._asked[key][0]
        stale = [each for each in self.tensors if self._asked[each][1] < before]
        if self.nbytes + need - sum(_size(self.tensors[each]) for each in stale) > self.budget:
            return
        while self.nbytes + need > self.budget:
            self.nbytes -= _size(self.tensors[gone := stale.pop(0)])
            del self.tensors[gone]
        self.tensors[key] = {suffix: tensor.cpu() for suffix, tensor in stored.items()}
        self.nbytes += need


def _size(stored: Stored) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
