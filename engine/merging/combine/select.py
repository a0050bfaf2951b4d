"""The largest elements of a tensor that is only ever seen tile by tile: an exact radix select, no sort, no whole tensor.

Magnitudes of float32 order as their bits do (IEEE 754), so a rank is found digit by digit: the upper 16 bits, the lower 16 bits,
and among equal magnitudes the row and the column, the first ones winning. Each digit is one look at every tile; counts are whole
numbers, so they do not depend on who looks first. Exactly `count` elements are kept, also of a tensor full of equal values.
"""
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...bands import Rows

MAGNITUDE = 0x7FFFFFFF                             # all bits of a float32 but the sign


def magnitude(delta: torch.Tensor) -> torch.Tensor:
    """|delta| as ordered int32; delta: float32."""
    return delta.view(torch.int32) & MAGNITUDE


@dataclass(frozen=True)
class Cut:
    """The largest elements of a tensor: magnitudes above `bits`, and those equal to it up to (row, column), in row-major order."""

    bits: int
    row: int = 0
    column: int = -1

    def keeps(self, delta: torch.Tensor, rows: Rows, columns: slice) -> torch.Tensor:
        """Which elements of a tile are among them, bool. delta: that part of the tensor, (rows, columns), float32."""
        found = magnitude(delta)
        kept, whole = found > self.bits, min(max(self.row - rows[0], 0), delta.shape[0])
        kept[:whole] |= found[:whole] == self.bits
        if rows[0] <= self.row < rows[1] and self.column >= columns.start:
            kept[whole, :self.column + 1 - columns.start] |= found[whole, :self.column + 1 - columns.start] == self.bits
        return kept


NONE, ALL = Cut(MAGNITUDE), Cut(-1)


class Search:
    """Finds the Cut of the `count` largest elements of a (rows, columns) tensor.

    Use: until `cut` is set, `look` at every tile once, on any threads, then `narrow`. At most four rounds, mostly two.
    """

    def __init__(self, count: int, shape: tuple[int, int]):
        self.shape, self.left, self.lock = shape, count, threading.Lock()
        self.cut = NONE if count <= 0 else ALL if count >= shape[0] * shape[1] else None
        self.digits: list[int] = []
        self._begin()

    def _begin(self) -> None:
        self.counts = torch.zeros((1 << 15, 1 << 16, *self.shape)[len(self.digits)], dtype=torch.int64)

    def look(self, delta: torch.Tensor, rows: Rows, columns: slice) -> None:
        """Count one tile, (rows, columns), float32, which must hold the same bits in every round."""
        if self.cut is not None:
            return
        found, where = magnitude(delta), slice(None)
        if not self.digits:
            counts = torch.bincount((found >> 16).reshape(-1), minlength=1 << 15)
        elif len(self.digits) == 1:
            counts = torch.bincount(found[(found >> 16) == self.digits[0]] & 0xFFFF, minlength=1 << 16)
        elif len(self.digits) == 2:
            counts, where = (found == self._bits).sum(1), slice(*rows)
        elif rows[0] <= self.digits[2] < rows[1]:
            counts, where = (found[self.digits[2] - rows[0]] == self._bits).to(torch.int64), columns
        else:
            return
        with self.lock:
            self.counts[where] += counts.cpu()

    def narrow(self) -> None:
        """All tiles are counted: choose the digit."""
        if self.cut is not None:
            return
        falling = len(self.digits) < 2
        counts = self.counts.flip(0) if falling else self.counts
        place = int(torch.searchsorted(counts.cumsum(0), self.left))
        self.left -= int(counts[:place].sum())
        everything = int(counts[place]) == self.left
        self.digits.append(len(counts) - 1 - place if falling else place)
        if len(self.digits) == 2 and everything:
            self.cut = Cut(self._bits, self.shape[0])
        elif len(self.digits) == 4:
            self.cut = Cut(self._bits, self.digits[2], self.digits[3])
        else:
            self._begin()

    @property
    def _bits(self) -> int:
        return self.digits[0] << 16 | self.digits[1]


def find_cut(delta: torch.Tensor, count: int) -> Cut:
    """The Cut of a tensor that lies whole in memory, (rows, columns), float32."""
    search = Search(count, tuple(delta.shape))
    while search.cut is None:
        search.look(delta, (0, delta.shape[0]), slice(0, delta.shape[1]))
        search.narrow()
    return search.cut


def as_matrix(delta: torch.Tensor) -> torch.Tensor:
    """(rows, every other axis as columns), float32; a vector is a column."""
    return delta.to(torch.float32).reshape(delta.shape[0] if delta.dim() else 1, -1)


def trim(deltas: Sequence[torch.Tensor], density: float) -> list[torch.Tensor]:
    """Each delta with exactly its int(density * n) largest elements, the others 0; copies."""
    trimmed = []
    for delta in deltas:
        flat = as_matrix(delta)
        cut = find_cut(flat, int(density * flat.numel()))
        trimmed.append((flat * cut.keeps(flat, (0, flat.shape[0]), slice(0, flat.shape[1]))).reshape(delta.shape))
    return trimmed
