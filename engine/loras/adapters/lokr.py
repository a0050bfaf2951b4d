"""LoKr: the Kronecker product of two small matrices, each whole or factored, the right one with a Tucker core or kernel axes.

    delta = alpha / rank * kron(w1, w2);  the rank is w2_b's, else w1_b's; both whole: alpha means nothing (it is inf or 9999999999)
Source: LyCORIS, arXiv 2309.14859, section 3.2, and lycoris/modules/lokr.py. On a convolution w1 stands for every kernel position,
so over flattened columns kron(w1, w2 flat) is exact (ComfyUI aligns the axes wrongly for 5-D).

kron(U1 D1, U2 D2) = kron(U1, U2) kron(D1, D2): of rank <= FACTOR_RANK, and under half of the smaller side, it is kept as factors
(then gates and Gram matrices see it as a LoRA); above, factors would cost more than the tiles of the product itself.
"""
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from ...bands import Rows
from ..delta import Delta, FactorDelta, flat_shape
from ..factors import Factors, expand, read_tensor
from ..fit import Shape, core_problem, kron_problem, pair_problem
from .dora import decompose
from .layer import Layer, Result
from .spelling import LOKR, MAGNITUDES

if TYPE_CHECKING:
    from ..lora import LoraFile

FACTOR_RANK = 512  # factors of 5120 x 5120 are then a tenth of the matrix each


@dataclass(frozen=True)
class Lokr:
    """left, right: keys of (whole,), (a, b) or (a, b, core). rank: of the product, as far as shapes tell."""

    kind: ClassVar[str] = "lokr"
    left: tuple[str, ...]
    right: tuple[str, ...]
    alpha: str | None
    form: str
    rank: int
    factor: float
    alpha_from: str

    @property
    def keys(self) -> tuple[str, ...]:
        return (*self.left, *self.right, *((self.alpha,) if self.alpha else ()))

    def load(self, lora: "LoraFile", shape: Shape, device: torch.device) -> Delta:
        """See `modules.Module.load`."""
        rows, columns = flat_shape(shape)
        left = _read(lora, self.left, self.factor)
        right = _read(lora, self.right, 1.0, rows // left[0].shape[0], columns // left[-1].shape[1])
        if self.form == "dense":
            return KronDelta(*(_matrix(side).to(device) for side in (left, right)))
        (up, down), (inner_up, inner_down) = _factors(left), _factors(right)
        return FactorDelta(Factors(torch.kron(up, inner_up).to(device), torch.kron(down, inner_down).to(device)))


class KronDelta(Delta):
    """kron(left, right), read off tile by tile. left: (a, b), right: (c, d), float32."""

    def __init__(self, left: torch.Tensor, right: torch.Tensor):
        self.left, self.right = left, right

    def write(self, rows: Rows, columns: slice, base: torch.Tensor | None, out: torch.Tensor) -> None:
        """See `Delta.write`; takes one more tile of out's size."""
        row = torch.arange(*rows, device=out.device)
        column = torch.arange(columns.start, columns.stop, device=out.device)
        height, width = self.right.shape
        torch.mul(_pick(self.left, row // height, column // width), _pick(self.right, row % height, column % width), out=out)


def _pick(matrix: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return matrix.index_select(0, rows).index_select(1, columns)


def _read(lora: "LoraFile", side: tuple[str, ...], factor: float, rows: int = 0, columns: int = 0) -> tuple[torch.Tensor, ...]:
    """One side, float32: (whole,) or (up, down); the factor goes into the first, in float64. 0: as many as are stored."""
    first = read_tensor(lora, side[0]).double().mul_(factor).to(torch.float32)
    if len(side) == 1:
        return (first.reshape(first.shape[0], columns or -1),)
    down = read_tensor(lora, side[1])
    if len(side) == 3:
        first, down = first.t(), expand(read_tensor(lora, side[2]), down)
    return first.reshape(rows or first.shape[0], -1).contiguous(), down.reshape(down.shape[0], columns or -1)


def _matrix(side: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return side[0] if len(side) == 1 else side[0] @ side[1]


def _factors(side: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """A whole matrix is itself times the identity on its shorter side, which is exact."""
    if len(side) == 2:
        return side
    rows, columns = side[0].shape
    return (torch.eye(rows), side[0]) if rows <= columns else (side[0], torch.eye(columns))


def build(layer: Layer) -> list[Result]:
    """The LoKr of the module, or nothing."""
    present = [part for part in LOKR if part in layer.parts]
    if not present:
        return []
    left, right = (_side(layer, name) for name in ("lokr_w1", "lokr_w2"))
    problem = left if isinstance(left, str) else right if isinstance(right, str) else _problem(layer, left, right)
    if problem:
        return layer.refuse(present, problem)
    dims = [layer.shape(side[1])[0] for side in (right, left) if len(side) > 1]
    factor, told = layer.stored_factor(dims[0]) if dims else (1.0, "both matrices are whole, so alpha means nothing")
    rank = math.prod(_rank(layer, side) for side in (left, right))
    form = "factors" if rank <= FACTOR_RANK and 2 * rank < min(flat_shape(layer.target(layer.weight))) else "dense"
    module = Lokr(layer.keys(left), layer.keys(right), layer.parts.get("alpha"), form, rank, factor, told)
    return decompose(layer, module) if any(part in layer.parts for part in MAGNITUDES) else [(layer.weight, module)]


def _side(layer: Layer, name: str) -> tuple[str, ...] | str:
    """Parts of one of the two matrices, or what is wrong with them."""
    pair, core = (f"{name}_a", f"{name}_b"), name.replace("w", "t")
    factored = [part for part in pair if part in layer.parts]
    if name in layer.parts:
        return f"{name} is there whole and factored" if factored or core in layer.parts else (name,)
    if len(factored) < 2:
        return f"{name} is missing" if not factored else f"{name}: partner factor missing"
    return (*pair, core) if core in layer.parts else pair


def _rank(layer: Layer, side: tuple[str, ...]) -> int:
    """Rank of one side's factors as `_factors` makes them."""
    first = layer.shape(side[0])
    return first[0] if len(side) == 3 else first[1] if len(side) == 2 else min(first[0], math.prod(first[1:]))


def _problem(layer: Layer, left: tuple[str, ...], right: tuple[str, ...]) -> str | None:
    if layer.weight is None:
        return layer.missing()
    wholes = []
    for side in (left, right):
        shapes = [layer.shape(part) for part in side]
        whole = shapes[0] if len(side) == 1 else _whole(shapes)
        if isinstance(whole, str):
            return whole
        wholes.append(whole)
    return kron_problem(*wholes, layer.target(layer.weight))


def _whole(shapes: list[Shape]) -> Shape | str:
    """Shape of a factored side, or what is wrong with its factors."""
    if any(len(shape) < 2 for shape in shapes):
        return f"factors {shapes[0]} and {shapes[1]} make no matrix"
    if len(shapes) == 3:
        up = shapes[0][::-1] if len(shapes[0]) == 2 else shapes[0]
        whole = (up[0], shapes[1][1], *shapes[2][2:])
        return core_problem(up, shapes[2], shapes[1], whole) or whole
    whole = (shapes[0][0], *shapes[1][1:])
    return pair_problem(*shapes, whole) or whole
