"""The formulas of k_asymmetric_sums.py compiled with numba: same names, same operations, same bits.

The lanes are sub-blocks side by side: lane k = sub-block * groups + super-block. Arrays hold a row for each field: known (W, X),
sums (L1, L2, LX), line (s, m). Functions write into their last array.
"""
import numba
from numpy import float32

from ..kernel_cache import kept
from . import k_asymmetric_sums
from .compiled import whole

# Called from compiled code alone: no way in from Python halves the time to compile.
inner = kept(numba.njit(nogil=True, fastmath=False, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True))
TWO = float32(2)                                   # a Python 2 would make it float64
SINGULAR = float32(k_asymmetric_sums.SINGULAR)
INFINITE = float32(k_asymmetric_sums.INFINITE)


@inner
def level(spot, top):
    """The code nearest to a place on the grid."""
    low = spot if spot > 0 else float32(0)
    return whole(low if low < top else top)


@inner
def spread_of(total, l1, l2):
    """W L2 - L1**2, 0 where it is only rounding."""
    product = total * l2
    spread = product - l1 * l1
    return spread if spread > product * SINGULAR else float32(0)


@inner
def excess(known, sums, k, scale, low):
    """Of lane k."""
    part = ((scale * sums[1, k] - TWO * sums[2, k]) - TWO * low * sums[0, k]) * scale
    return part + (known[0, k] * low + TWO * known[1, k]) * low


@inner
def columns(terms):
    """Sum over dim 0, into its first row."""
    half = len(terms) // 2
    while half:
        for i in range(half):
            low, high = terms[i], terms[half + i]
            for k in range(len(low)):
                low[k] += high[k]
        half //= 2


@inner
def positions(x, line, spots):
    """Into spots: (x + m) / s, 0 where s is."""
    for i in range(len(x)):
        weights, row = x[i], spots[i]
        for k in range(len(row)):
            scale = line[0, k] if line[0, k] > 0 else INFINITE
            row[k] = (weights[k] + line[1, k]) / scale


@inner
def moments(x, weight, spots, top, terms):
    """Into the first row of terms, (size / 2, 3 * lanes): the sums of the codes nearest to spots."""
    lanes, half = x.shape[1], len(x) // 2
    for i in range(half):
        x_low, x_high, low, high, row = x[i], x[half + i], spots[i], spots[half + i], terms[i]
        first, second, third = row[:lanes], row[lanes:2 * lanes], row[2 * lanes:]
        w_low, w_high = weight[i], weight[half + i]
        for k in range(lanes):
            level_low, level_high = level(low[k], top), level(high[k], top)
            share_low, share_high = level_low * w_low[k], level_high * w_high[k]
            first[k] = share_low + share_high
            second[k] = share_low * level_low + share_high * level_high
            third[k] = share_low * x_low[k] + share_high * x_high[k]
    columns(terms[:half])


@inner
def gain(known, sums, score):
    """Into score; -inf where all codes are the same."""
    for k in range(len(score)):
        total, sum_x, l1, l2, lx = known[0, k], known[1, k], sums[0, k], sums[1, k], sums[2, k]
        spread = spread_of(total, l1, l2)
        slope = total * lx - sum_x * l1
        scale = slope / spread
        at_zero = total * (lx * lx / l2) - sum_x * sum_x
        value = at_zero if scale * l1 < sum_x else slope * scale
        score[k] = value if spread > 0 else -INFINITE


@inner
def fitted(known, sums, line):
    """line becomes that of least error, or stays where all l are the same."""
    for k in range(line.shape[1]):
        total, sum_x, l1, l2, lx = known[0, k], known[1, k], sums[0, k], sums[1, k], sums[2, k]
        spread = spread_of(total, l1, l2)
        scale = (total * lx - sum_x * l1) / spread
        low = (scale * l1 - sum_x) / total
        bound, sound = low < 0, spread > 0
        scale, low = lx / l2 if bound else scale, float32(0) if bound else low
        line[0, k], line[1, k] = scale if sound else line[0, k], low if sound else line[1, k]
