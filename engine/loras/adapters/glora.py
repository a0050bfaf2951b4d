"""GLoRA: a low-rank change of what goes into the layer, and one beside it.

    W' = W + s * alpha / rank * (W a1 a2 + b1 b2)        a1 (in, r), a2 (r, in), b1 (out, r), b2 (r, in, kernel...)
Source: Chavan et al. 2023, arXiv 2306.07967; LyCORIS f49d30d, lycoris/modules/glora.py. Its old files have both products the other
way round (W a2 a1 + b2 b1), told by shape; where both fit (rank = outputs = inputs), ComfyUI takes the old one, and so does this.
"""
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from ...bands import Rows
from ..delta import Transform
from ..factors import Factors, read_tensor
from ..fit import Shape, misfit, pair_problem, trim
from .layer import Layer, Result
from .spelling import GLORA

if TYPE_CHECKING:
    from ..lora import LoraFile


@dataclass(frozen=True)
class Glora:
    """inner: keys of (a1, a2), outer: of (b1, b2), each in the order they are multiplied in."""

    form: ClassVar[str] = "transform"
    kind: ClassVar[str] = "glora"
    inner: tuple[str, str]
    outer: tuple[str, str]
    alpha: str | None
    rank: int
    factor: float
    alpha_from: str

    @property
    def keys(self) -> tuple[str, ...]:
        return (*self.inner, *self.outer, *((self.alpha,) if self.alpha else ()))

    def load(self, lora: "LoraFile", shape: Shape, device: torch.device) -> Transform:
        """See `modules.Module.load`."""
        into, columns = shape[1], math.prod(shape[1:])
        a1, a2, b1, b2 = (read_tensor(lora, key) for key in (*self.inner, *self.outer))
        a1, b1 = (each.reshape(rows, self.rank).double().mul_(self.factor).to(device, torch.float32) for each, rows in
                  ((a1, into), (b1, shape[0])))
        outer = Factors(b1, b2.reshape(self.rank, columns).to(device))
        return GloraTransform(a1, a2.reshape(self.rank, into).to(device), outer)


class GloraTransform(Transform):
    """first (in, r), second (r, in), outer: the product beside them; the factor is in first and in outer."""

    def __init__(self, first: torch.Tensor, second: torch.Tensor, outer: Factors):
        self.first, self.second, self.outer = first, second, outer

    def apply(self, weight: torch.Tensor, rows: Rows, columns: slice, strength: float) -> None:
        """See `Transform.apply`; takes one more band of the weight's size, two for a convolution."""
        inputs = self.first.shape[0]
        change = torch.empty_like(weight)
        self.outer.product(rows, columns, change)
        by_input = weight.unflatten(1, (inputs, -1)).transpose(1, 2)      # (rows, kernel, in)
        turned = (by_input.reshape(-1, inputs) @ self.first) @ self.second
        change.unflatten(1, (inputs, -1)).add_(turned.view(by_input.shape).transpose(1, 2))
        weight.add_(change, alpha=strength)


def build(layer: Layer) -> list[Result]:
    """The GLoRA of the module, or nothing."""
    present = [part for part in GLORA if part in layer.parts]
    if not present:
        return []
    missing = [part for part in GLORA if part not in layer.parts]
    if missing or layer.weight is None:
        return layer.refuse(present, f"{missing[0]} is missing" if missing else layer.missing())
    target = layer.target(layer.weight)
    orders = [(("a1", "a2"), ("b1", "b2")), (("a2", "a1"), ("b2", "b1"))]
    problems = [_problem(layer, order, target) for order in orders]
    if all(problems):
        return layer.refuse(present, problems[0])
    inner, outer = orders[0] if problems[1] else orders[1]
    rank = layer.shape(outer[1])[0]
    module = Glora(layer.keys(inner), layer.keys(outer), layer.parts.get("alpha"), rank, *layer.stored_factor(rank))
    return [(layer.weight, module)]


def _problem(layer: Layer, order: tuple[tuple[str, str], tuple[str, str]], target: Shape) -> str | None:
    """Why the four do not fit in this order."""
    a1, a2, b1, b2 = (layer.shape(part) for pair in order for part in pair)
    problem = pair_problem(b1, b2, target)
    if problem:
        return problem
    square, first = (target[1], target[1]), trim(a1, 2)
    if first != (target[1], b2[0]) or trim(a2, 2) != first[::-1]:
        return f"a1 {a1} and a2 {a2}: {misfit((*a1[:1], *a2[1:2]), square)}, or their rank is not {b2[0]}"
    return None
