"""INT8 as ComfyUI's `int8_tensorwise` stores it: one float32 scale for the tensor, or for each row, the weight rotated or not.

    scale = max(amax / 127, 1e-30)          codes = round_half_even(weight / scale)          read back: codes * scale

(comfy_kitchen/backends/eager/quantization.py, quantize_int8_tensorwise, quantize_int8_rowwise.) The division is comfy-kitchen's, so
codes and scales are its bits for `tensor` and `row`. For `convrot` the rows are rotated first (rotation.py), and comfy-kitchen's
product rounds its sums otherwise: measured on Gaussian to heavy-tailed weights, 4 to 8 codes of a million differ, each by one, and
scales by 6e-7 of themselves at most.

The floor under the scale keeps an all-zero row finite: its codes are 0 and read back as exactly 0. No clamp is needed: two
roundings keep |weight| / scale under 127 * (1 + 2**-22), which rounds to 127.

Relative error, Gaussian / Student-t (5 degrees) weights, 5120 x 5120: tensor 0.0120 / 0.157, row 0.0088 / 0.0212,
convrot 0.0088 / 0.0089; FP8 has 0.0265 at the same size. With one scale for the tensor its one largest weight decides, so the error
grows with the size and is another in each draw: Student-t gave 0.048 to 0.165 at 512 rows, 0.085 to 0.165 at 5120 (three draws).

ComfyUI measures the activations for each row and reads no input scale.
"""
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch

from .fp8 import combine, measure
from .rotation import GROUP, finite, require_groups, rotate, rotated_tiles, row_amax, spread
from .words import entry

INT8_MAX = 127.0                                   # -128 is not used, so that a weight and its negative have the same size
SMALLEST_SCALE = 1e-30                             # comfy-kitchen's


@dataclass(frozen=True)
class Int8:
    """One way to scale. scaling: "tensor", "row", or "convrot" (rotated, then by row)."""

    scaling: str
    NAME: ClassVar[str] = "int8_tensorwise"
    STORED: ClassVar[torch.dtype] = torch.int8
    GROUPS: ClassVar[Mapping[str, int]] = MappingProxyType({})
    INPUT_AMAX: ClassVar[None] = None
    STOCHASTIC: ClassVar[bool] = True
    combine = staticmethod(combine)

    @property
    def CONSTANTS(self) -> tuple[str, ...]:
        """Suffixes of the stored tensors without rows."""
        return ("_scale",) if self.scaling == "tensor" else ()

    @property
    def measure(self):
        """Largest magnitude of a band where one scale serves the tensor; None where a row's own is enough."""
        return measure if self.scaling == "tensor" else None

    def outputs(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Suffix -> (shape, dtype). Raises ValueError when `convrot` cannot divide the columns into groups of 256."""
        if self.scaling == "convrot":
            require_groups(shape, "int8_tensorwise with convrot")
        return {"": (shape, torch.int8), "_scale": (() if self.scaling == "tensor" else (shape[0], 1), torch.float32)}

    def constants(self, amax: float | None) -> dict[str, torch.Tensor]:
        """`_scale`, () float32, of a tensor whose amax is known; nothing else has no rows."""
        return {"_scale": _scale(torch.tensor(amax, dtype=torch.float32))} if self.scaling == "tensor" else {}

    def quantize(self, band: torch.Tensor, amax: float | None, scratch: torch.Tensor | None = None, *,
                 importance: torch.Tensor | None = None, noise: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Codes of some rows, and their scales.

        band: (rows, in_features) float32, not modified; amax: of the whole tensor, None unless scaling is "tensor".
        scratch: float32 of the band's shape, overwritten, or None. importance: ignored, the scale is what the largest weight needs.
        noise: (rows, in_features) uniform [0, 1) rounds stochastically, None to nearest even. Raises ValueError on NaN or inf.
        """
        if self.scaling == "convrot":
            return _quantize_rotated(band, noise)
        if self.scaling == "tensor":
            scale = self.constants(amax)["_scale"].to(band.device)
        else:
            scale = _scale(finite(torch.maximum(band.amax(1, keepdim=True), -band.amin(1, keepdim=True))))
        codes = rounded(torch.div(band, scale, out=scratch), INT8_MAX, noise).to(torch.int8)
        return {"": codes} if self.scaling == "tensor" else {"": codes, "_scale": scale}

    def dequantize(self, parts: dict[str, torch.Tensor], rows: list[int] | None = None) -> torch.Tensor:
        """float32 weight, rotated back. parts: `""` (any rows, in_features) int8 and `_scale`; rows: which of them, None: all."""
        codes, scale = parts[""], parts["_scale"].to(parts[""].device)
        if rows is not None:
            codes, scale = codes[rows], scale if scale.numel() == 1 else scale[rows]
        weight = codes.float().mul_(scale)
        return rotate(weight, out=weight) if self.scaling == "convrot" else weight

    def comfy_quant(self, *, full_precision: bool) -> dict:
        """What ComfyUI reads from `<layer>.comfy_quant`; see words.entry."""
        rotation = {"convrot": True, "convrot_groupsize": GROUP} if self.scaling == "convrot" else {}
        return entry(self.NAME, full_precision=full_precision, **rotation)


def rounded(tile: torch.Tensor, largest: float, noise: torch.Tensor | None) -> torch.Tensor:
    """Integers of magnitude `largest` at most, for values that are no larger but for roundings.

    tile: float32, overwritten. noise: None rounds to nearest even; uniform [0, 1) of tile's shape takes the upper neighbour the
    more often the nearer it is, so that the mean is the value.
    """
    if noise is None:
        return tile.round_()
    lower = tile.floor()
    return lower.add_(tile.sub_(lower) > noise).clamp_(-largest, largest)


def _scale(amax: torch.Tensor) -> torch.Tensor:
    return (amax / INT8_MAX).clamp_(min=SMALLEST_SCALE)


def _quantize_rotated(band: torch.Tensor, noise: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """Codes, (rows, in_features) int8, and scales, (rows, 1) float32, of the rotated band."""
    groups = band.shape[1] // GROUP
    codes, scale = torch.empty_like(band, dtype=torch.int8), band.new_empty(len(band), 1)
    for rows, tile in rotated_tiles(band):
        scale[rows] = _scale(row_amax(tile, groups))[:, None]
        tile.div_(spread(scale[rows, 0], groups))
        integers = rounded(tile, INT8_MAX, None if noise is None else noise[rows].reshape(-1, GROUP).T)
        codes[rows].view(-1, GROUP).copy_(integers.to(torch.int8).T)
    return {"": codes, "_scale": scale}


TENSOR, ROW, CONVROT = Int8("tensor"), Int8("row"), Int8("convrot")
