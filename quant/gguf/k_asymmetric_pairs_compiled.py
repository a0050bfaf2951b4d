"""The formulas of k_asymmetric_pairs.py compiled with numba: same names, same operations, same bits.

Arrays as in k_asymmetric_sums_compiled.py, and stored (d, dmin, S, M, excess): d, dmin and excess stand in the lanes of all
sub-blocks of their super-block.
"""
from numpy import float32, floor

from .compiled import HALF_MAX, rounded, whole
from .k_asymmetric_sums_compiled import SINGULAR, TWO, excess, inner


@inner
def floats(scale):
    """As there."""
    size = scale if scale > 0 else float32(0)
    return rounded(size if size < float32(HALF_MAX) else float32(HALF_MAX))


@inner
def clamped(code, code_top):
    """Nearest code of a scale or a minimum."""
    low = code if code > 0 else float32(0)
    return whole(low if low < code_top else code_top)


@inner
def nearest_low(known, sums, k, scale, dmin):
    """The best m for a scale, in dmin."""
    return (scale * sums[0, k] - known[1, k]) / (known[0, k] * dmin) if dmin > 0 else float32(0)


@inner
def tree(values, groups):
    """Sum over the sub-blocks of each super-block, into all their lanes."""
    width = len(values) // 2
    while width >= groups:
        for k in range(width):
            values[k] += values[width + k]
        width //= 2
    for first in range(groups, len(values), groups):
        for k in range(groups):
            values[first + k] = values[k]


@inner
def coded(known, sums, line, stored, code_top):
    """S, M and the excess of sub-blocks for the d and dmin of stored."""
    for k in range(line.shape[1]):
        d, dmin = stored[0, k], stored[1, k]
        down = floor(line[0, k] / d) if d > 0 else float32(0)
        scales, up = clamped(down, code_top), clamped(down + float32(1), code_top)
        minima = clamped(nearest_low(known, sums, k, d * scales, dmin), code_top)
        minima_up = clamped(nearest_low(known, sums, k, d * up, dmin), code_top)
        error = excess(known, sums, k, d * scales, dmin * minima)
        error_up = excess(known, sums, k, d * up, dmin * minima_up)
        higher = error_up < error
        stored[2, k] = up if higher else scales
        stored[3, k] = minima_up if higher else minima
        stored[4, k] = error_up if higher else error


@inner
def joint(known, sums, stored, groups, work):
    """d and dmin become those of least error for the codes, or stay; excess that of the super-block. work: its first five rows."""
    for k in range(stored.shape[1]):
        scales, minima = stored[2, k], stored[3, k]
        work[0, k] = scales * scales * sums[1, k]
        work[1, k] = scales * minima * sums[0, k]
        work[2, k] = minima * minima * known[0, k]
        work[3, k] = scales * sums[2, k]
        work[4, k] = minima * known[1, k]
    for row in range(5):
        tree(work[row], groups)
    for k in range(stored.shape[1]):
        a, b, c, p, q = work[0, k], work[1, k], work[2, k], work[3, k], work[4, k]
        product = a * c
        spread = product - b * b
        sound = spread > product * SINGULAR
        d = floats((p * c - q * b) / spread) if sound else stored[0, k]
        dmin = floats((p * b - q * a) / spread) if sound else stored[1, k]
        stored[0, k], stored[1, k] = d, dmin
        stored[4, k] = ((d * a - TWO * p) - TWO * dmin * b) * d + (dmin * c + TWO * q) * dmin


@inner
def lined(stored, line):
    """s and m as a reader multiplies them."""
    for k in range(line.shape[1]):
        line[0, k], line[1, k] = stored[0, k] * stored[2, k], stored[1, k] * stored[3, k]


@inner
def keep(stored, best, always):
    """best becomes stored where its excess is lower."""
    for k in range(stored.shape[1]):
        if always or stored[4, k] < best[4, k]:
            for row in range(5):
                best[row, k] = stored[row, k]
