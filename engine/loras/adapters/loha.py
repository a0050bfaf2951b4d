"""LoHa: the element-wise product of two low-rank products.

    delta = alpha / rank * (w1_a @ w1_b) * (w2_a @ w2_b),  rank = w1_b.shape[0]
    with cores (Tucker):  each product is einsum("ij...,ip,jr->pr...", t, wa, wb)
Source: LyCORIS, arXiv 2309.14859, section 3.2; FedPara, arXiv 2108.06098. Computed tile by tile: the product itself never exists.
"""
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from ...bands import Rows
from ..delta import Delta, flat_shape
from ..factors import Factors, expand, read_tensor
from ..fit import Shape, core_problem, pair_problem
from .dora import decompose
from .layer import Layer, Result
from .spelling import LOHA, MAGNITUDES

if TYPE_CHECKING:
    from ..lora import LoraFile

SIDES = (("hada_w1_a", "hada_w1_b", "hada_t1"), ("hada_w2_a", "hada_w2_b", "hada_t2"))


@dataclass(frozen=True)
class Loha:
    """sides: two times (a, b, core or None), keys of the file."""

    form: ClassVar[str] = "dense"
    kind: ClassVar[str] = "loha"
    sides: tuple[tuple[str, str, str | None], ...]
    alpha: str | None
    rank: int
    factor: float
    alpha_from: str

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for side in self.sides for key in side if key) + ((self.alpha,) if self.alpha else ())

    def load(self, lora: "LoraFile", shape: Shape, device: torch.device) -> Delta:
        """See `modules.Module.load`."""
        first, second = (_factors(lora, side, shape, device) for side in self.sides)
        first.up.copy_(first.up.double().mul_(self.factor))
        return HadamardDelta(first, second)


class HadamardDelta(Delta):
    """first * second, element by element; the factor is folded into the first."""

    def __init__(self, first: Factors, second: Factors):
        self.first, self.second = first, second

    def write(self, rows: Rows, columns: slice, base: torch.Tensor | None, out: torch.Tensor) -> None:
        """See `Delta.write`; takes one more tile of out's size."""
        other = torch.empty_like(out)
        self.second.product(rows, columns, other)
        self.first.product(rows, columns, out)
        out.mul_(other)


def _factors(lora: "LoraFile", side: tuple[str, str, str | None], shape: Shape, device: torch.device) -> Factors:
    """One side as up @ down, every column axis flattened; with a core, a is stored (rank, out)."""
    rows, columns = flat_shape(shape)
    up, down = read_tensor(lora, side[0]), read_tensor(lora, side[1])
    if side[2] is not None:
        up, down = up.t(), expand(read_tensor(lora, side[2]), down)
    return Factors(up.reshape(rows, -1).contiguous().to(device), down.reshape(-1, columns).to(device))


def build(layer: Layer) -> list[Result]:
    """The LoHa of the module, or nothing."""
    present = [part for part in LOHA if part in layer.parts]
    if not present:
        return []
    problem = _problem(layer)
    if problem:
        return layer.refuse(present, problem)
    rank = layer.shape("hada_w1_b")[0]
    sides = tuple((layer.parts[a], layer.parts[b], layer.parts.get(core)) for a, b, core in SIDES)
    module = Loha(sides, layer.parts.get("alpha"), rank, *layer.stored_factor(rank))
    return decompose(layer, module) if any(part in layer.parts for part in MAGNITUDES) else [(layer.weight, module)]


def _problem(layer: Layer) -> str | None:
    missing = [part for part in LOHA[:4] if part not in layer.parts]
    if missing:
        return f"{missing[0]} is missing"
    if len({core in layer.parts for _, _, core in SIDES}) > 1:
        return "one of the two cores is missing"
    if layer.weight is None:
        return layer.missing()
    target = layer.target(layer.weight)
    for a, b, core in SIDES:
        up, down = layer.shape(a), layer.shape(b)
        if core in layer.parts:
            problem = core_problem(up[::-1] if len(up) == 2 else up, layer.shape(core), down, target)
        else:
            problem = pair_problem(up, down, target)
        if problem:
            return problem
    return None
