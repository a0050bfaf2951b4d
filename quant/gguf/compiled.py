"""What all compiled encoders share: how numba is called, lanes, and float16 without a float16.

`fastmath` stays off: nothing is contracted or reordered, so each float32 operation is the one that the torch path makes, and the
bytes are equal. LANES blocks are worked on at once, element i of each in row i, so that a loop over them becomes vector
instructions.
"""
import numba
from numpy import float32, int32

from ..kernel_cache import kept

LANES = 64                                         # blocks of 32: their weights are 8 KB, a fraction of L1
HALF_MAX = 65504.0                                 # IEEE 754 binary16
compiled = kept(numba.njit(nogil=True, fastmath=False, error_model="numpy"))
inlined = kept(numba.njit(nogil=True, fastmath=False, error_model="numpy", inline="always"))


@inlined
def rounded(scale):
    """float32 of the nearest float16, ties to even; above 65504 what a wider exponent would give: the caller looks at it.

    (s + m) - m with m = 2**13 ulp of s leaves 11 significant bits; below 2**-14 the ulp stays 2**-24.
    """
    exponent = float32(scale).view(int32) & int32(0x7F800000)
    magic = int32(max(exponent, int32((127 - 14) << 23)) + int32(13 << 23)).view(float32)
    size = (abs(float32(scale)) + magic) - magic
    return float32(-size) if scale < 0 else float32(size)


@inlined
def whole(value):
    """Nearest whole number, ties to even, as float32; |value| < 2**22. ggml-quants.c, `nearest_int`: adds 1.5 * 2**23."""
    return (float32(value) + float32(12582912.0)) - float32(12582912.0)
