"""ConvRot W4A4: rotated rows in signed 4 bit with one float32 scale each, as ComfyUI's `convrot_w4a4` stores them.

    fast:     scale = max(amax of the rotated row, 1e-10) / 7          codes = clamp(round_half_even(rotated / scale), -7, 7)
    balanced: the same with scale * f, where f of 1, 2**(-1/6), ... 2**(-8/6) leaves the row's least sum of squared errors
    packed[:, j] = codes[:, 2 j] & 15 | codes[:, 2 j + 1] << 4          read back: codes * scale, rotated

(comfy_kitchen/backends/eager/convrot_w4a4.py, quantize_signed_int4_rowwise; `fast` is its arithmetic after another order of the
rotation's additions, see rotation.py: 0 to 2 codes of a million differ, by one.) The scale is a free number: 15 levels over the
range of 5120 Gaussian numbers lie far apart, and clipping a few large ones costs less than it gains. Relative error, 5120 columns:

                                     fast     balanced
    Gaussian, Student-t, Laplace     0.160    0.114        (40 factors and least squares: 0.1134)
    columns of lognormal size        0.175    0.123        (exp(n), n normal; benchmarks/error.py draws exp(0.5 n))

The activations are quantized to 4 bit too when the model runs, each row by its own amax.

`linear_dtype` is not written: ComfyUI leaves it out for "int4", which is what it assumes.
"""
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch

from .int8 import rounded
from .rotation import GROUP, require_groups, rotate, rotated_tiles, row_amax, spread
from .words import entry

INT4_MAX = 7.0                                     # comfy-kitchen's _INT4_MAX; -8 is not used
SMALLEST_AMAX = 1e-10                              # comfy-kitchen's floor: an all-zero row gets a finite scale and codes 0
FACTORS = tuple(2 ** (-step / 6) for step in range(9))      # coarser, 2**(-1/4): 0.5 % more error; finer: 0.3 % less at most


@dataclass(frozen=True)
class ConvrotW4A4:
    """search: "fast" takes the scale that clips nothing, "balanced" the one with the least error."""

    search: str = "balanced"
    NAME: ClassVar[str] = "convrot_w4a4"
    STORED: ClassVar[torch.dtype] = torch.int8
    GROUPS: ClassVar[Mapping[str, int]] = MappingProxyType({})
    CONSTANTS: ClassVar[tuple[str, ...]] = ()
    INPUT_AMAX: ClassVar[None] = None
    STOCHASTIC: ClassVar[bool] = True
    measure: ClassVar[None] = None

    def outputs(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Suffix -> (shape, dtype). Raises ValueError unless in_features is a multiple of 256."""
        require_groups(shape, self.NAME)
        return {"": ((shape[0], shape[1] // 2), torch.int8), "_scale": ((shape[0],), torch.float32)}

    def constants(self, stats: None) -> dict[str, torch.Tensor]:
        """Everything stored has rows."""
        return {}

    def quantize(self, band: torch.Tensor, stats: None = None, scratch: torch.Tensor | None = None, *,
                 importance: torch.Tensor | None = None, noise: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Packed codes of some rows, and their scales.

        band: (rows, in_features) float32, not modified. scratch: ignored, a tile is enough. importance: ignored, the rotation mixes
        256 input columns into each code. noise: (rows, in_features) uniform [0, 1) rounds stochastically and without a search, as
        clipping would shift the mean; None to nearest even. Raises ValueError on NaN or inf.
        """
        groups = band.shape[1] // GROUP
        packed = torch.empty(len(band), band.shape[1] // 2, dtype=torch.int8, device=band.device)
        scale = band.new_empty(len(band))
        for rows, tile in rotated_tiles(band):
            scale[rows] = row_amax(tile, groups).clamp_(min=SMALLEST_AMAX).div_(INT4_MAX)
            tile.div_(spread(scale[rows], groups))
            if noise is None and self.search != "fast":
                ratio = _least_error(tile, groups)
                scale[rows] *= ratio
                tile.div_(spread(ratio, groups))
            integers = rounded(tile, INT4_MAX, None if noise is None else noise[rows].reshape(-1, GROUP).T)
            packed[rows].view(-1, GROUP // 2).copy_(_pack(integers.clamp_(-INT4_MAX, INT4_MAX).to(torch.int8)).T)
        return {"": packed, "_scale": scale}

    def dequantize(self, parts: dict[str, torch.Tensor], rows: list[int] | None = None) -> torch.Tensor:
        """float32 weight, rotated back. parts: `""` (any rows, in_features / 2) int8, `_scale`; rows: which of them, None: all."""
        packed, scale = parts[""], parts["_scale"].to(parts[""].device)
        if rows is not None:
            packed, scale = packed[rows], scale[rows]
        codes = torch.stack([((packed & 15) ^ 8) - 8, packed >> 4], dim=-1).flatten(1)
        weight = codes.float().mul_(scale[:, None])
        return rotate(weight, out=weight)

    def comfy_quant(self, *, full_precision: bool) -> dict:
        """What ComfyUI reads from `<layer>.comfy_quant`; see words.entry."""
        return entry(self.NAME, full_precision=full_precision, convrot_groupsize=GROUP)


def _least_error(tile: torch.Tensor, groups: int) -> torch.Tensor:
    """The best of FACTORS for each row. tile: (256, rows * groups), in units of the scale. Returns (rows,) float32."""
    errors, buffer = tile.new_empty(len(FACTORS), tile.shape[1]), torch.empty_like(tile)
    for factor, error in zip(FACTORS, errors, strict=True):
        torch.mul(tile, 1 / factor, out=buffer).round_().clamp_(-INT4_MAX, INT4_MAX)
        buffer.mul_(factor).sub_(tile).square_()
        rest = buffer
        while len(rest) > 1:                       # sums by halves: an order that no thread or device changes
            rest = rest[:len(rest) // 2].add_(rest[len(rest) // 2:])
        error.copy_(rest[0])
    best = errors.view(len(FACTORS), -1, groups).sum(2).argmin(0)
    return tile.new_tensor(FACTORS)[best]


def _pack(codes: torch.Tensor) -> torch.Tensor:
    """Two columns of a rotated group in a byte, the even one low. codes: (256, n) int8. Returns (128, n) int8."""
    low, high = codes.view(GROUP // 2, 2, -1).unbind(1)
    return (low & 15) | (high << 4)


FAST, BALANCED = ConvrotW4A4("fast"), ConvrotW4A4("balanced")
