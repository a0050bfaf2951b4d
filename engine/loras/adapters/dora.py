"""DoRA: a magnitude per output or per input over the direction of the weight that another adapter moved.

    V = W + delta,  W' = m * V / |V|,  so that W' - W = (g - 1) * W + g * delta   with g = m / |V|
Source: Liu et al. 2024, arXiv 2402.09353, equation 5; the norm is V's, not W's, and W is the original base.
PEFT (tuners/lora/dora.py) has one norm per output; LyCORIS per output (`wd_on_out`, its default) or per input; OneTrainer per
input.
Written as the sum above, a small change is not the difference of two large numbers. A V of norm 0 becomes 0, as with m * 0.
"""
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from ...bands import TILE_COLUMNS, Rows
from ..delta import Delta
from ..factors import read_tensor
from ..fit import Shape, vector_axis
from ..modules import Module
from .layer import Layer, Result
from .spelling import MAGNITUDES

if TYPE_CHECKING:
    from ..lora import LoraFile



@dataclass(frozen=True)
class Dora:
    """inner: what moves the direction; magnitude: its key; axis: 0 a number per output, 1 per input."""

    form: ClassVar[str] = "base"
    kind: ClassVar[str] = "dora"
    inner: Module
    magnitude: str
    axis: int

    @property
    def keys(self) -> tuple[str, ...]:
        return (*self.inner.keys, self.magnitude)

    @property
    def rank(self) -> int:
        return self.inner.rank

    @property
    def factor(self) -> float:
        return self.inner.factor

    @property
    def alpha_from(self) -> str:
        return self.inner.alpha_from

    def load(self, lora: "LoraFile", shape: Shape, device: torch.device) -> Delta:
        """See `modules.Module.load`."""
        magnitude = read_tensor(lora, self.magnitude).reshape(-1).double()
        delta = DoraDelta(self.inner.load(lora, shape, device), magnitude, self.axis, math.prod(shape[2:]))
        delta.device = device
        return delta


class DoraDelta(Delta):
    """magnitude: float64 on the CPU, a number per output (axis 0) or per input (1); kernel: columns per input."""

    device: torch.device = torch.device("cpu")

    def __init__(self, inner: Delta, magnitude: torch.Tensor, axis: int, kernel: int):
        self.inner, self.magnitude, self.axis, self.kernel = inner, magnitude, axis, kernel
        self.gain: torch.Tensor | None = None
        self.gain_less_one: torch.Tensor | None = None

    def observe(self, rows: Rows, base: torch.Tensor) -> torch.Tensor:
        """Squares of V summed along the other axes: (rows,) or (inputs,), float64 on the CPU."""
        sums = []
        for start in range(0, base.shape[1], TILE_COLUMNS):
            columns = slice(start, min(start + TILE_COLUMNS, base.shape[1]))
            tile = torch.empty(base.shape[0], columns.stop - start, device=base.device)
            self.inner.write(rows, columns, None, tile)
            tile.add_(base[:, columns])
            sums.append(torch.linalg.vector_norm(tile, dim=1 - self.axis, dtype=torch.float64).square_().cpu())
        return sum(sums) if self.axis == 0 else torch.cat(sums).view(-1, self.kernel).sum(1)

    def settle(self, observed: list[object]) -> None:
        """See `Delta.settle`."""
        norm = (torch.cat(observed) if self.axis == 0 else sum(observed)).sqrt()
        gain = torch.where(norm > 0, self.magnitude / norm, 0.0)
        if self.axis == 1:
            gain = gain.repeat_interleave(self.kernel)
        self.gain, self.gain_less_one = (each.to(torch.float32).to(self.device) for each in (gain, gain - 1.0))

    def write(self, rows: Rows, columns: slice, base: torch.Tensor | None, out: torch.Tensor) -> None:
        """See `Delta.write`."""
        if self.gain is None:
            raise RuntimeError("a DoRA's norms have not been settled yet")
        gain, less_one = (each[rows[0]:rows[1], None] if self.axis == 0 else each[columns]
                          for each in (self.gain, self.gain_less_one))
        self.inner.write(rows, columns, None, out)
        out.mul_(gain).addcmul_(base[:, columns], less_one)


def decompose(layer: Layer, inner: Module) -> list[Result]:
    """DoRA around `inner`, or the refusal of both."""
    found = [part for part in MAGNITUDES if part in layer.parts]
    target = layer.target(layer.weight)
    shape = layer.shape(found[0])
    axis = vector_axis(shape, target)
    if found[0] != "dora_scale" and math.prod(shape) == max(shape) == target[0] and len(shape) <= len(target):
        axis = 0                                   # PEFT: always per output, (out,), for a convolution (1, out, 1, ...)
    elif found[0] != "dora_scale":
        axis = None
    if len(found) > 1:
        reason = "DoRA with two magnitudes; which of them holds cannot be told"
    elif axis is None:
        reason = f"DoRA's magnitude has shape {shape}, expected a number per output or per input of {target}"
    else:
        return [(layer.weight, Dora(inner, layer.parts[found[0]], axis))]
    used = [part for part, key in layer.parts.items() if key in inner.keys and part != "alpha"]
    return layer.refuse(used, reason)
