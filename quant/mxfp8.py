"""MXFP8: FP8 E4M3 with one power of two per 32 weights of a row, as ComfyUI's `mxfp8` stores it.

    e = max(ceil(log2(amax of the block / 448)) + 127, 1)
    codes = RNE_e4m3(weight * 2**(127 - e))            read back: codes * 2**(e - 127)

(OCP Microscaling Formats 1.0, table 1; the exponent is rounded up, so nothing clips; comfy-kitchen's eager `quantize_mxfp8`, whose
bytes these are.) 448 is E4M3's largest value, e is stored as E8M0, a bare exponent, in the order of `swizzle`. Rows and columns of
codes are padded with zeros to 32. Relative error on Gaussian weights: 0.0265, FP8's own; unlike FP8 a block of small weights keeps
it whatever the largest weight of the tensor is.

The exponent is found by integers: 448 = 1.75 * 2**8, so e is amax's exponent field - 8, and one more where amax's fraction is over
.75. comfy-kitchen takes the logarithm in float32, which rounds the quotient's first few steps over a power of two down to it: SLACK
is how many steps of amax that is. No clamp is needed: such an amax comes out under 448 * (1 + 2**-18), which E4M3 rounds to 448.

Two cases differ from comfy-kitchen. A block whose amax is about 448 * 2**-127 or less gets exponent 1; comfy-kitchen gives it 0,
divides by that, and writes NaN or codes that read back as zero. NaN and inf are refused here; comfy-kitchen stores them.
"""
from collections.abc import Mapping
from types import MappingProxyType

import torch

from .backend import compiled_for
from .fp8 import F8_E4M3_MAX
from .grid import BIAS, MANTISSA_BITS, round_stochastic
from .swizzle import padded_shape, swizzle, unswizzle
from .words import NOT_FINITE, entry

NAME = "mxfp8"
STORED = torch.float8_e4m3fn
SCALE = getattr(torch, "float8_e8m0fnu", torch.uint8)      # the dtype came with torch 2.7; ComfyUI loads both
GROUPS: Mapping[str, int] = MappingProxyType({"_scale": 128})
CONSTANTS: tuple[str, ...] = ()
STOCHASTIC = True
INPUT_AMAX = None                                  # ComfyUI always measures the activations
BLOCK = 32                                         # OCP MX 1.0, table 1
INFINITY = 0x7F800000                              # float32 bits; NaN lies above
MAGNITUDE = 0x7FFFFFFF                             # all bits but the sign
TILE = 1 << 18                                     # weights; in smaller tiles the calls cost more than L2 gives
measure = None


def _slack() -> torch.Tensor:
    """(256,) int32, by amax's exponent field: steps of amax over 448 * 2**n that float32's logarithm of amax / 448 does not see.

    A quotient of 2**n * (1 + m * 2**-23) counts as 2**n while n + log2(1 + m * 2**-23), rounded to float32, is n. One of its steps
    is 1.75 of amax's, and the quotient itself is rounded to nearest.
    """
    powers = torch.arange(256, dtype=torch.float64)[:, None] - BIAS - 8
    above = torch.log2(1 + torch.arange(1, 64, dtype=torch.float64) / 2 ** MANTISSA_BITS)
    unseen = ((powers + above).float() == powers.float()).sum(1)
    return (1.75 * (unseen + 0.5)).floor().int()


# Added to amax's bits, it carries into the exponent where the fraction is over .75 by more than the slack.
ROUND_UP = 0x1FFFFF - _slack()


def outputs(shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Suffix -> (shape, dtype) of everything stored for a weight of this shape. Raises ValueError when it is not a matrix."""
    if len(shape) != 2:
        raise ValueError(f"mxfp8 holds matrices only, got shape {shape}; keep this weight in its own dtype")
    rows, columns = (-(-size // BLOCK) * BLOCK for size in shape)
    return {"": ((rows, columns), STORED), "_scale": (padded_shape(shape[0], columns // BLOCK), SCALE)}


def quantize(band: torch.Tensor, stats: None = None, scratch: torch.Tensor | None = None, *,
             importance: torch.Tensor | None = None, noise: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Codes and exponents of some rows.

    band: (rows, in_features) float32, not modified; rows % 32 != 0 only at the end of a tensor. scratch: float32 of the band's
    shape, overwritten, or None. importance: ignored. noise: (rows, in_features) uniform [0, 1) rounds stochastically, None to
    nearest even. Raises ValueError on NaN or inf.
    """
    missing = (0, -band.shape[1] % BLOCK, 0, -band.shape[0] % BLOCK)
    if any(missing):
        band, scratch = torch.nn.functional.pad(band, missing), None
        noise = noise if noise is None else torch.nn.functional.pad(noise, missing)
    if noise is None and (found := compiled_for(band)):
        codes, exponents, highest = found.fp8.encode_blocks(band, ROUND_UP)
        if highest >= INFINITY:
            raise ValueError(NOT_FINITE)
    else:
        codes, exponents = _encode_blocks(band, scratch, noise)
    return {"": codes, "_scale": swizzle(exponents).view(SCALE)}


def _encode_blocks(band: torch.Tensor, scratch: torch.Tensor | None,
                   noise: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes, and exponents (rows, blocks of a row) uint8, of a padded band; the arguments as in `quantize`."""
    codes = torch.empty_like(band, dtype=STORED)
    exponents = torch.empty(len(band), band.shape[1] // BLOCK, dtype=torch.uint8, device=band.device)
    round_up, step = ROUND_UP.to(band.device), max(1, TILE // band.shape[1])
    for rows in (slice(start, start + step) for start in range(0, len(band), step)):
        blocks = band[rows].view(-1, BLOCK)
        tile = (torch.empty_like(band[rows]) if scratch is None else scratch[rows]).view(-1, BLOCK)
        amax = torch.bitwise_and(blocks.view(torch.int32), MAGNITUDE, out=tile.view(torch.int32)).amax(-1)
        exponent = _exponent(amax, round_up)
        torch.mul(blocks, (2 * BIAS - exponent << MANTISSA_BITS).view(torch.float32)[:, None], out=tile)
        if not exponent.amin():
            tile.masked_fill_((exponent == 0)[:, None], 0.0)                   # -0 would be stored as -0
        if noise is not None:
            round_stochastic(tile.clamp_(-F8_E4M3_MAX, F8_E4M3_MAX), noise[rows], 3, -6)   # E4M3, OCP OFP8, table 1
        codes[rows] = tile.view(band[rows].shape)
        exponents[rows] = exponent.view(exponents[rows].shape)
    return codes, exponents


def _exponent(amax: torch.Tensor, round_up: torch.Tensor) -> torch.Tensor:
    """E8M0 exponents, int32, of blocks whose largest magnitudes have the float32 bits `amax`; 0 for a block of zeros."""
    lowest, highest = torch.aminmax(amax)
    if highest >= INFINITY:
        raise ValueError(NOT_FINITE)
    up = round_up.index_select(0, amax >> MANTISSA_BITS)
    exponent = up.add_(amax).bitwise_right_shift_(MANTISSA_BITS).sub_(8).clamp_(min=1)
    return exponent if lowest else exponent.mul_(amax != 0)


def constants(stats: None) -> dict[str, torch.Tensor]:
    """All of it is stored by rows."""
    return {}


def dequantize(parts: dict[str, torch.Tensor], rows: list[int] | None = None) -> torch.Tensor:
    """float32, (rows, stored columns).

    parts: `""` and `_scale` of a run of rows that starts at a multiple of 128. rows: which of them, None: all stored rows.
    """
    codes = parts[""]
    exponents = unswizzle(parts["_scale"].view(torch.uint8), len(codes), codes.shape[1] // BLOCK)
    if rows is not None:
        codes, exponents = codes[rows], exponents[rows]
    scale = (exponents.int() << MANTISSA_BITS).view(torch.float32)             # exponent 0 reads as 0: comfy-kitchen's e8m0_to_f32
    return (codes.float().view(len(codes), -1, BLOCK) * scale[..., None]).view(codes.shape)


def comfy_quant(*, full_precision: bool) -> dict:
    """What ComfyUI reads from `<layer>.comfy_quant`; see words.entry."""
    return entry(NAME, full_precision=full_precision)
