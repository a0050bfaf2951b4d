"""Whole tensors: differences of weights, biases, norms and modulation, and replacements.

    diff, w_norm        added to the weight or the bare parameter          LyCORIS (full, norms), LightX2V's extractor
    diff_b, b_norm      added to the bias
    diff_m              added to the modulation of a block or of the head  LightX2V's extractor
    set_weight          W' = W + s (value - W): at strength 1 the value itself     ComfyUI, comfy/lora.py (ignores the strength)
"""
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from ...bands import Rows
from ..delta import StoredDelta, Transform
from ..fit import Shape, same
from ..modules import UNSCALED, Diff
from .layer import Layer, Result

if TYPE_CHECKING:
    from ..lora import LoraFile

TO_BIAS = ("diff_b", "b_norm")


@dataclass(frozen=True)
class Replace:
    """The tensor becomes the one in the file."""

    form: ClassVar[str] = "transform"
    kind: ClassVar[str] = "set"
    rank: ClassVar[int] = 0
    factor: ClassVar[float] = 1.0
    alpha_from: ClassVar[str] = UNSCALED
    key: str

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def load(self, lora: "LoraFile", shape: Shape, device: torch.device) -> Transform:
        """See `modules.Module.load`; rows are read when they are needed."""
        return ReplaceTransform(StoredDelta(lora, self.key, device))


class ReplaceTransform(Transform):
    """stored: the value."""

    def __init__(self, stored: StoredDelta):
        self.stored = stored

    def apply(self, weight: torch.Tensor, rows: Rows, columns: slice, strength: float) -> None:
        """See `Transform.apply`."""
        weight.lerp_(self.stored.read(rows)[:, columns], strength)  # at 1 the value itself, bit for bit


def build(layer: Layer) -> list[Result]:
    """Every whole tensor of the module."""
    results: list[Result] = []
    for part in ("diff", "w_norm", *TO_BIAS, "diff_m", "set_weight"):
        if part in layer.parts:
            target, what = _target(layer, part)
            problem = layer.missing(what) if target is None else same(layer.shape(part), layer.target(target))
            key = layer.parts[part]
            results += layer.refuse([part], problem) if problem else [(target, Replace(key) if part == "set_weight" else Diff(key))]
    return results


def _target(layer: Layer, part: str) -> tuple[str | None, str]:
    """(key of the base, what it is called). The layer of a `diff_m` is the modulation itself (dialects.split)."""
    return (layer.bias, "bias") if part in TO_BIAS else (layer.weight, "weight")
