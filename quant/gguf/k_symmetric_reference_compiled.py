"""The passes of `k_symmetric_reference.py` compiled with numba; its docstring holds the formulas, the operations are the same.

Groups and rows are those of `k_symmetric_trials_compiled.py`; the rows of weights hold x^2.
"""
import numpy
from numpy import float32, int32

from .compiled import compiled, inlined, rounded
from .k_symmetric_trials_compiled import GROUP, LANES, SUB

TINY = 1e-15                                       # as k_symmetric_reference.py
MAGIC = 12582912.0


@inlined
def nearest_int(value):
    """float32, as `k_symmetric_reference.nearest_int`."""
    return float32((float32(float32(value) + float32(MAGIC)).view(int32) & int32(0x7FFFFF)) - int32(0x400000))


@compiled
def encode(block, kind, d, c, stored):
    """Fills d (GROUP), c (LANES) and stored, 16 rows of uint8: codes + levels. Returns the largest |d|, before it is rounded."""
    largest, scales, found = numpy.empty(LANES, float32), numpy.empty(LANES, float32), numpy.empty(SUB * LANES, float32)
    sums = numpy.empty(2 * LANES, float32)
    _first_largest(block, SUB, LANES, largest)
    if kind[0] == 32:
        _qx_scales(block, kind[0], largest, sums, scales, found)
    else:
        _q3_scales(block, kind[0], largest, sums, scales, found)
    for lane in range(LANES):
        if abs(largest[lane]) < float32(TINY):
            scales[lane] = 0
            for i in range(SUB):
                found[i * LANES + lane] = -kind[0]
    return _store(block, kind, scales, found, (d, c, stored))


@compiled
def _first_largest(rows, count, width, largest):
    """Of each of `width` columns the first value of largest magnitude."""
    for lane in range(width):
        largest[lane] = 0
    for i in range(count):
        for lane in range(width):
            value = rows[i * width + lane]
            largest[lane] = value if abs(value) > abs(largest[lane]) else largest[lane]


@compiled
def _sums(block, levels, inverse, sums, found):
    """S(w x l) and S(w l^2), running; fills the codes l."""
    low, high = float32(-levels), float32(levels - 1)
    sums[:] = 0
    for i in range(SUB):
        for lane in range(LANES):
            code = min(max(nearest_int(inverse[lane] * block[i * LANES + lane]), low), high)
            found[i * LANES + lane] = code
            sums[lane] += block[(i + 16) * LANES + lane] * code
            sums[LANES + lane] += block[(i + 32) * LANES + lane] * code * code


@compiled
def _qx_scales(block, levels, largest, sums, scales, found):
    inverse, chosen, best = numpy.empty(LANES, float32), numpy.empty(LANES, float32), numpy.empty(LANES, float32)
    for index in range(19):
        step = 0 if index == 0 else (index - 10 if index < 10 else index - 9)
        factor = -(float32(levels) + float32(0.1) * float32(step))
        for lane in range(LANES):
            inverse[lane] = factor / largest[lane]
        _sums(block, levels, inverse, sums, found)
        for lane in range(LANES):
            first, second = sums[lane], sums[LANES + lane]
            ratio = first / second if second > 0 else float32(0)
            higher = index == 0 or (second > 0 and first * first > best[lane] * second)
            scales[lane] = ratio if higher else scales[lane]
            best[lane] = ratio * first if higher else best[lane]
            chosen[lane] = inverse[lane] if higher else chosen[lane]
    _sums(block, levels, chosen, sums, found)


@compiled
def _q3_scales(block, levels, largest, sums, scales, found):
    inverse, low, high = numpy.empty(LANES, float32), float32(-levels), float32(levels - 1)
    for lane in range(LANES):
        inverse[lane] = low / largest[lane]
    _sums(block, levels, inverse, sums, found)
    for index in range(5 * SUB):
        i = index % SUB
        for lane in range(LANES):
            old, first, second = found[i * LANES + lane], sums[lane], sums[LANES + lane]
            x, wx, w = block[i * LANES + lane], block[(i + 16) * LANES + lane], block[(i + 32) * LANES + lane]
            rest, rest_2 = first - wx * old, second - w * old * old
            new = min(max(nearest_int(x * rest_2 / rest), low), high)
            total, total_2 = rest + wx * new, rest_2 + w * new * new
            better = (rest > 0) & (new != old) & (total_2 > 0) & (total * total * second > first * first * total_2)
            found[i * LANES + lane] = new if better else old
            sums[lane] = total if better else first
            sums[LANES + lane] = total_2 if better else second
    for lane in range(LANES):
        scales[lane] = sums[lane] / sums[LANES + lane] if sums[LANES + lane] > 0 else float32(0)


@compiled
def _store(block, kind, scales, found, target):
    d, c, stored = target
    largest, levels, most = numpy.empty(GROUP, float32), float32(kind[0]), float32(0)
    _first_largest(scales, SUB, GROUP, largest)
    for group in range(GROUP):
        void = abs(largest[group]) < float32(TINY) if kind[0] == 32 else largest[group] == 0
        inverse = float32(0) if void else float32(-kind[1]) / largest[group]
        size = float32(0) if void else float32(1) / inverse
        most = max(most, abs(size))
        d[group] = rounded(size)
        for sub in range(SUB):
            lane = sub * GROUP + group
            c[lane] = min(max(nearest_int(inverse * scales[lane]), float32(-kind[1])), float32(kind[1] - 1))
            if void:                               # llama.cpp: all bytes 0
                c[lane] = 0 if kind[0] == 32 else -32
            if scales[lane] != scales[lane]:       # weights whose cubes float32 does not hold
                most = float32(numpy.inf)
            step = d[group] * c[lane]
            for i in range(SUB):
                at = i * LANES + lane
                code = found[at] if step == 0 else min(max(nearest_int(block[at] / step), -levels), levels - float32(1))
                stored[at] = numpy.uint8(0) if void and kind[0] == 32 else numpy.uint8(int32(code + levels))
    return most
