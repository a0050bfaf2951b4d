"""FP8 and MXFP8 compiled with numba: one pass over a band, without the GIL, the bytes of the torch path.

Imported only where numba is installed (`backend.py`). `fastmath` stays off, so the one product of every weight is the float32
product that `fp8.py` and `mxfp8.py` make. Rounding to nearest, ties to even, is integer arithmetic on the product's bits: of the
`drop` = 23 - mantissa bits that go, half a step less one is added, and one more where the last bit that stays is odd; the carry is
the rounding up, into the exponent too. Below the format's smallest normal value the adder rounds: with

    MAGIC = 2**(smallest exponent - mantissa bits + 23)

one unit in the last place of MAGIC + size is the format's smallest step, so the sum's low bits are the code (PyTorch, c10/util,
`fp8e4m3fn_from_fp32_value` and `fp8e5m2_from_fp32_value`). What is too large becomes what torch makes of it, E4M3's NaN or E5M2's
inf: no merged weight does, but a base's may under the scale of the merge.
"""
from functools import cache
from math import log2

import numba
import numpy
import torch
from numpy import float32, int32, uint8

from .grid import BIAS, MANTISSA_BITS
from .kernel_cache import kept

BLOCK = 32                                         # OCP MX 1.0, table 1
MAGNITUDE = 0x7FFFFFFF                             # all bits of a float32 but the sign
SIGN = 0x80                                        # of a code
LANES, PART = 128, 8                               # blocks looked at together, 16 KB; numbers that one is folded to first
compiled = kept(numba.njit(nogil=True, fastmath=False, error_model="numpy"))
inlined = kept(numba.njit(nogil=True, fastmath=False, error_model="numpy", inline="always"))


def encode(band: torch.Tensor, factor: float, stored: torch.dtype) -> torch.Tensor:
    """Codes of band * factor, in a new tensor of the band's shape and dtype `stored`, E4M3 or E5M2.

    band: float32 of any shape, without NaN; factor: a float32; their product is rounded to float32 first.
    """
    codes = torch.empty(band.shape, dtype=stored)
    _encode(band.reshape(-1).numpy(), float32(factor), grid(stored), codes.view(torch.uint8).view(-1).numpy())
    return codes


def encode_blocks(band: torch.Tensor, round_up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Codes and exponents of MXFP8, and the float32 bits of the largest magnitude, which tell NaN and inf.

    band: (rows, columns % 32 == 0) float32; round_up: `mxfp8.ROUND_UP`. Returns E4M3 of the band's shape, uint8 (rows, blocks of a
    row) in plain order.
    """
    codes = torch.empty(band.shape, dtype=torch.float8_e4m3fn)
    exponents = torch.empty(len(band), band.shape[1] // BLOCK, dtype=torch.uint8)
    flat = codes.view(torch.uint8).view(-1, BLOCK).numpy(), exponents.view(-1).numpy()
    highest = _encode_blocks(band.reshape(-1, BLOCK).numpy(), round_up.numpy(), grid(codes.dtype), *flat)
    return codes, exponents, int(highest)


@cache
def grid(stored: torch.dtype) -> tuple[int32, float32, int32, int32]:
    """What rounding needs of a format: bits that go, MAGIC, bits of its smallest normal value, the code of what is too large."""
    about, beyond = torch.finfo(stored), torch.tensor(float("inf")).to(stored).view(torch.uint8)
    magic, normal = float32(about.smallest_normal * about.eps * 2.0 ** MANTISSA_BITS), float32(about.smallest_normal)
    return int32(MANTISSA_BITS + log2(about.eps)), magic, normal.view(int32), int32(beyond.item())


@inlined
def _code(product, drop, magic, normal, beyond):
    """The code of a float32: all of one width, so that a loop over it becomes vector instructions."""
    bits = float32(product).view(int32)
    size = bits & int32(MAGNITUDE)
    odd = (size >> drop) & int32(1)
    half = (int32(1) << (drop - int32(1))) - int32(1)
    rounded = min((size + odd + half - normal + (int32(1) << int32(MANTISSA_BITS))) >> drop, beyond)
    small = float32(abs(product) + magic).view(int32) - float32(magic).view(int32)
    return uint8((rounded if size >= normal else small) | ((bits >> int32(24)) & int32(SIGN)))


@compiled
def _encode(values, factor, grid, codes):
    drop, magic, normal, beyond = grid
    for i in range(len(values)):
        codes[i] = _code(values[i] * factor, drop, magic, normal, beyond)


@compiled
def _encode_blocks(blocks, round_up, grid, codes, exponents):
    folded, factors, highest = numpy.zeros((PART, LANES), int32), numpy.zeros(LANES, float32), int32(0)
    for start in range(0, len(blocks), LANES):
        part = blocks[start:start + LANES]
        _fold(part, folded)
        highest = max(highest, _exponents(folded, round_up, exponents[start:start + LANES], factors))
        _code_blocks(part, factors, grid, codes[start:start + LANES])
    return highest


@compiled
def _fold(blocks, folded):
    """The bits of the largest magnitude of each block, in the first row of folded."""
    bits = blocks.view(int32)
    for lane in range(len(bits)):
        for j in range(PART):
            low = max(int32(bits[lane, j] & MAGNITUDE), int32(bits[lane, j + PART] & MAGNITUDE))
            high = max(int32(bits[lane, j + 2 * PART] & MAGNITUDE), int32(bits[lane, j + 3 * PART] & MAGNITUDE))
            folded[j, lane] = max(low, high)
    for j in range(1, PART):
        for lane in range(LANES):
            folded[0, lane] = max(folded[0, lane], folded[j, lane])


@compiled
def _exponents(folded, round_up, exponents, factors):
    highest = int32(0)
    for lane in range(len(exponents)):
        amax = folded[0, lane]
        highest = max(highest, amax)
        up = int32(amax + round_up[int32(amax >> MANTISSA_BITS)])
        exponent = int32(max(int32(int32(up >> MANTISSA_BITS) - int32(8)), int32(1)))
        exponents[lane] = uint8(exponent if amax else int32(0))
        bits = int32(int32(2 * BIAS) - exponent) << int32(MANTISSA_BITS)
        factors[lane] = int32(bits if amax else int32(0)).view(float32)
    return highest


@compiled
def _code_blocks(blocks, factors, grid, codes):
    drop, magic, normal, beyond = grid
    for lane in range(len(blocks)):
        factor = factors[lane]
        keep = uint8(255) if factor > float32(0) else uint8(0)       # -0 would be stored as -0
        for j in range(BLOCK):
            codes[lane, j] = _code(blocks[lane, j] * factor, drop, magic, normal, beyond) & keep
