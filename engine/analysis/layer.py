"""The deltas that several LoRAs have for one tensor, read once and laid side by side.

Methods are not applied: a delta here is strength * (alpha / rank) * up @ down, as addition would add it.
"""
from dataclasses import dataclass, field

import torch

from ..bands import Rows
from ..loras.delta import Delta, flat_shape
from ..merging.contribution import Contribution
from ..specs import TensorSpec
from .scratch import Scratch

CPU = torch.device("cpu")
UNKNOWABLE = {"base": "depends on the weights of the base", "transform": "depends on what is merged before it",
              "comfyui": "compat comfyui applies this kind to whole tensors of the base"}


@dataclass(frozen=True)
class Member:
    """What one entry of the recipe adds: the sum of its deltas, times its strength. No deltas: nothing that is known."""

    who: int
    strength: float
    deltas: list[Delta]

    @property
    def rank(self) -> int | None:
        """Of the deltas together; None when one of them is no product of factors."""
        return None if any(delta.factors is None for delta in self.deltas) else sum(d.factors.down.shape[0] for d in self.deltas)

    def write(self, rows: Rows, columns: slice, out: torch.Tensor) -> None:
        """OVERWRITE `out` (rows, columns), float32, with that part of strength * delta."""
        self.deltas[0].write(rows, columns, None, out)
        for delta in self.deltas[1:]:
            extra = torch.empty_like(out)
            delta.write(rows, columns, None, extra)
            out.add_(extra)
        out.mul_(self.strength)


@dataclass(frozen=True)
class Layer:
    """One tensor, seen as `shape` (rows, columns), and who changes it.

    left_out: (entry number, kind, reason) of modules that cannot be known from their file alone.
    """

    key: str
    shape: tuple[int, int]
    members: list[Member]
    left_out: list[tuple[int, str, str]] = field(default_factory=list)

    @property
    def who(self) -> list[int]:
        return [member.who for member in self.members]

    @property
    def is_low_rank(self) -> bool:
        """Whether everything is a product of factors, and of a rank at which products of factors are the cheaper way."""
        ranks = [member.rank for member in self.members]
        return None not in ranks and max(ranks, default=0) <= min(self.shape)


@dataclass(frozen=True)
class Stacked:
    """Factors of all members, one under the other, float32: ups (ranks, rows) with the strength inside, downs (ranks, columns).

    spans: (start, stop) along the ranks, by member.
    """

    ups: torch.Tensor
    downs: torch.Tensor
    spans: list[tuple[int, int]]


def open_layer(key: str, spec: TensorSpec, contributions: list[tuple[int, Contribution]]) -> Layer:
    """Read what the LoRAs add to one tensor. contributions: (entry number, what). Factors are read whole, dense modules later.

    Raises LoraError, naming file and key, for values that are not finite.
    """
    members, left_out = [], []
    for who, what in contributions:
        modules = [module.plain(what.lora, spec.shape) if module.form == "comfyui" else module for module in what.modules]
        left_out += [(who, module.kind, UNKNOWABLE[module.form]) for module in modules if module.form in UNKNOWABLE]
        known = [module for module in modules if module.form not in UNKNOWABLE]
        if known:
            members.append(Member(who, what.strength, [module.load(what.lora, spec.shape, CPU) for module in known]))
    if not members:                                # everything is left out; a layer has one member at least
        members.append(Member(contributions[0][0], contributions[0][1].strength, []))
    return Layer(key, flat_shape(spec.shape), members, left_out)


def stack(layer: Layer, scratch: Scratch) -> Stacked:
    """The factors of a layer that is low-rank, in the scratch. ups are laid out by rank: each LoRA's part is contiguous."""
    total, spans, start = sum(member.rank for member in layer.members), [], 0
    ups, downs = scratch.take("ups", total, layer.shape[0]), scratch.take("downs", total, layer.shape[1])
    for member in layer.members:
        first = start
        for delta in member.deltas:
            stop = start + delta.factors.down.shape[0]
            torch.mul(delta.factors.up.t(), member.strength, out=ups[start:stop])
            downs[start:stop] = delta.factors.down
            start = stop
        spans.append((first, start))
    return Stacked(ups, downs, spans)
