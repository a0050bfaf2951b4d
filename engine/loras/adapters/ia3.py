"""IA3: one learned number per input or output of a layer.

    delta = W * w          W the original base; w along the inputs where the file's `on_input` is not 0, else along the outputs
Source: Liu et al. 2022, arXiv 2205.05638; LyCORIS f49d30d, lycoris/modules/ia3.py (W * (1 + s w), keys `.weight` and `.on_input`).
"""
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from ...bands import Rows
from ..delta import Delta
from ..factors import read_tensor
from ..fit import Shape
from ..modules import UNSCALED
from .layer import Layer, Result

if TYPE_CHECKING:
    from ..lora import LoraFile

WHOLE = "a whole weight, as a model has, not a change of one; extract a LoRA from the two checkpoints instead"


@dataclass(frozen=True)
class Ia3:
    """learned: key; flag: key of on_input; axis: 0 along the outputs, 1 along the inputs."""

    form: ClassVar[str] = "base"
    kind: ClassVar[str] = "ia3"
    rank: ClassVar[int] = 0
    factor: ClassVar[float] = 1.0
    alpha_from: ClassVar[str] = UNSCALED
    learned: str
    flag: str
    axis: int

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.learned, self.flag)

    def load(self, lora: "LoraFile", shape: Shape, device: torch.device) -> Delta:
        """See `modules.Module.load`."""
        learned = read_tensor(lora, self.learned).reshape(-1).to(device)
        return Ia3Delta(learned[:, None] if self.axis == 0 else learned.repeat_interleave(math.prod(shape[2:])))


class Ia3Delta(Delta):
    """learned: (out, 1), or one for every column."""

    def __init__(self, learned: torch.Tensor):
        self.learned = learned

    def write(self, rows: Rows, columns: slice, base: torch.Tensor | None, out: torch.Tensor) -> None:
        """See `Delta.write`."""
        learned = self.learned[rows[0]:rows[1]] if self.learned.ndim == 2 else self.learned[columns]
        torch.mul(base[:, columns], learned, out=out)


def build(layer: Layer) -> list[Result]:
    """The IA3 of the module, or nothing."""
    if "on_input" not in layer.parts:
        return layer.refuse(["weight"], WHOLE)
    if "weight" not in layer.parts:
        return layer.refuse(["on_input"], "on_input without weight")
    problem, axis = layer.missing() if layer.weight is None else None, 0
    if problem is None and math.prod(layer.shape("on_input")) != 1:
        problem = f"on_input has shape {layer.shape('on_input')}, expected one number"
    if problem is None:
        axis, target, shape = int(layer.scalar("on_input") != 0), layer.target(layer.weight), layer.shape("weight")
        if len(target) < 2 or math.prod(shape) != target[axis] or max(shape, default=0) != target[axis]:
            problem = f"IA3 of shape {shape} is no number for each {'input' if axis else 'output'} of {target}"
    if problem:
        return layer.refuse(("weight", "on_input"), problem)
    return [(layer.weight, Ia3(layer.parts["weight"], layer.parts["on_input"], axis))]
