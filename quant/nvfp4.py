"""NVFP4: E2M1 codes, an E4M3 scale for every 16 weights of a row, a float32 scale for the tensor, as ComfyUI's `nvfp4` stores it.

    weight_scale_2 = amax / 2688        block_scale = e4m3(amax of the block / 6 / weight_scale_2)       2688 = 448 * 6
    codes = RNE_e2m1(weight / (weight_scale_2 * block_scale))      read back: codes * (weight_scale_2 * block_scale)

Stored: uint8 (rows, columns / 2), the even column in the HIGH nibble; the block scales swizzled (`swizzle.py`); rows and columns
padded to 16 with zeros. 4.5 bits per weight. The formula, in this order of float32 roundings, is comfy-kitchen's eager
`quantize_nvfp4`, and `fast` writes its bytes. `balanced` and `best` change nothing but the byte of the block scale
(`nvfp4_search.py`), and are read by the same kernels. Relative error on Gaussian weights, 5120 columns: fast 0.0952, balanced
0.0819, best 0.0813.

What differs from comfy-kitchen. An all-zero tensor gets weight_scale_2 = 1 and zeros (there: NaN). Under an amax of 1.9e-42
weight_scale_2 would round to zero and every weight be lost; here it is the smallest float32. A block whose scale
rounds to zero (its amax is under 2**-10 * 6 weight_scale_2) is stored as zeros by `fast`, as there; a search gives it at least the
smallest scale, 2**-9. A block of zeros has scale 0 and codes 0 everywhere.
"""
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch

from . import fp8
from .nvfp4_codes import BLOCK, decode, encode_by_chance
from .nvfp4_passes import passes
from .nvfp4_search import BALANCED as FIVE
from .nvfp4_search import BEST as EIGHT
from .nvfp4_search import neighbours, value
from .swizzle import padded_shape, swizzle, unswizzle
from .words import entry

E2M1_MAX = 6.0                                     # OCP Microscaling specification, FP4
SMALLEST = 2.0 ** -149                             # float32, subnormal
SEARCHED_FROM = 2.0 ** -100                        # amax: below, weight_scale_2 times a small scale is subnormal; no model has it
OFFSETS = {"fast": (), "balanced": FIVE, "best": EIGHT}


@dataclass(frozen=True)
class Nvfp4:
    """search: fast (the rounded scale), balanced (the best of 5 scales) or best (of 8)."""

    search: str = "balanced"

    NAME: ClassVar[str] = "nvfp4"
    STORED: ClassVar[torch.dtype] = torch.uint8
    GROUPS: ClassVar[Mapping[str, int]] = MappingProxyType({"_scale": 128})
    CONSTANTS: ClassVar[tuple[str, ...]] = ("_scale_2",)
    INPUT_AMAX: ClassVar[float] = fp8.F8_E4M3_MAX * E2M1_MAX
    STOCHASTIC: ClassVar[bool] = True
    measure = staticmethod(fp8.measure)
    combine = staticmethod(fp8.combine)

    def __post_init__(self):
        if self.search not in OFFSETS:
            raise ValueError(f"nvfp4: search is one of {', '.join(OFFSETS)}, got {self.search!r}")

    def outputs(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Suffix -> (shape, dtype) of everything stored. Raises ValueError when the weight is no matrix."""
        if len(shape) != 2 or 0 in shape:
            raise ValueError(f"nvfp4: expected a matrix, got shape {tuple(shape)}; keep this tensor in 16 or 32 bit")
        rows, columns = (-(-size // BLOCK) * BLOCK for size in shape)
        return {"": ((rows, columns // 2), self.STORED),
                "_scale": (padded_shape(rows, columns // BLOCK), torch.float8_e4m3fn), "_scale_2": ((), torch.float32)}

    def constants(self, amax: float) -> dict[str, torch.Tensor]:
        """`_scale_2`, () float32."""
        return {"_scale_2": weight_scale_2(amax)}

    def quantize(self, band: torch.Tensor, amax: float, scratch: torch.Tensor | None = None, *,
                 importance: torch.Tensor | None = None, noise: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Codes and block scales of some rows.

        band: (rows, columns) float32, not modified, rows a multiple of 128 but in the last band; amax: of the whole tensor.
        scratch: float32 of the band's shape, overwritten, saves an allocation; None allocates.
        importance: (columns,) float32, how much a column's squared error counts in the search, not negative; None: all alike.
        noise: uniform [0, 1) float32 of the band's shape: stochastic rounding on the scales of `fast`; what lies above 6 becomes 6.
        None: to nearest, ties to even.
        """
        blocks = blocks_of(band)
        run = passes(blocks, scratch)
        scale_2 = weight_scale_2(amax).to(band.device)
        largest = run.block_amax(blocks)
        byte = rounded_scale(largest, scale_2)
        if noise is None and OFFSETS[self.search] and amax >= SEARCHED_FROM:
            weight = None if importance is None else blocks_of(share(importance).unsqueeze(0))[0]
            byte = run.search(blocks, neighbours(byte, OFFSETS[self.search]), scale_2, weight) * (largest > 0)
        total = scale_2 * value(byte)
        lost = total == 0
        total.masked_fill_(lost, 1.0)
        packed = run.encode(blocks, total) if noise is None else encode_by_chance(blocks, total, blocks_of(noise))
        packed.view(torch.int64).masked_fill_(lost, 0)               # 8 bytes are a block; a negative zero has a code, too
        return {"": packed, "_scale": swizzle(byte.view(torch.float8_e4m3fn))}

    def dequantize(self, parts: dict[str, torch.Tensor], rows: list[int] | None = None) -> torch.Tensor:
        """float32 weight, multiplied in the order of comfy-kitchen's eager `dequantize_nvfp4`.

        parts: the stored tensors of a run of rows that starts at a multiple of 128. rows: those wanted, counted within the run;
        None: all. Returns (rows, stored columns).
        """
        packed = parts[""]
        scale = unswizzle(parts["_scale"], len(packed), packed.shape[1] * 2 // BLOCK).view(torch.uint8)
        if rows is not None:
            packed, scale = packed[rows], scale[rows]
        total = parts["_scale_2"].to(packed.device) * value(scale)
        return decode(packed).view(len(packed), -1, BLOCK).mul_(total.unsqueeze(2)).view(len(packed), -1)

    def comfy_quant(self, *, full_precision: bool) -> dict:
        """What ComfyUI reads from `<layer>.comfy_quant`; see words.entry."""
        return entry(self.NAME, full_precision=full_precision)


def weight_scale_2(amax: float) -> torch.Tensor:
    """() float32: amax / 2688; 1 where amax is zero, the smallest float32 where the quotient is."""
    scale = torch.tensor(amax, dtype=torch.float32) / Nvfp4.INPUT_AMAX
    return scale.clamp_(min=SMALLEST) if amax > 0 else torch.ones(())


def rounded_scale(largest: torch.Tensor, scale_2: torch.Tensor) -> torch.Tensor:
    """E4M3 bytes of the block scales that put each block's amax on the 6, as uint8."""
    six = torch.full_like(scale_2, E2M1_MAX)       # a Python number would be multiplied as 1 / 6 on CUDA
    return (largest / six).div_(scale_2).clamp_(max=fp8.F8_E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)


def blocks_of(band: torch.Tensor) -> torch.Tensor:
    """(rows, columns) padded to multiples of 16 with zeros, as (rows, blocks of a row, 16)."""
    down, right = (-size % BLOCK for size in band.shape)
    if down or right or band.storage_offset() % 2:                   # pairs of floats are moved as one
        band = torch.nn.functional.pad(band, (0, right, 0, down)) if down or right else band.clone()
    return band.view(len(band), -1, BLOCK)


def share(importance: torch.Tensor) -> torch.Tensor:
    """Weights of the columns over their largest: the same order of errors, and no overflow. Raises ValueError on NaN, inf or a
    negative one."""
    largest = importance.max()
    if not (torch.isfinite(largest) and importance.min() >= 0):
        raise ValueError("nvfp4: expected finite importances of at least 0; calibrate again")
    return importance / largest if largest > 0 else torch.ones_like(importance)


FAST, BALANCED, BEST = Nvfp4("fast"), Nvfp4("balanced"), Nvfp4("best")
