"""The passes of `k_symmetric_search.py` compiled with numba; its docstring holds the formulas, the operations are the same.

Groups and rows are those of `k_symmetric_trials_compiled.py`.
"""
import numpy
from numpy import float32

from .compiled import compiled, rounded, whole
from .k_symmetric_trials_compiled import ERROR, FIRST, GROUP, LANES, SECOND, SUB, TRIAL, C, attempt, better, fold, fold_subs

TINY = 1e-15                                       # as k_symmetric_search.py


@compiled
def search(block, kind, trials, d, c):
    """Fills d (GROUP) and c (LANES). kind: levels, steps; trials: factors, starts, reach. Returns the largest |d|, unrounded."""
    factors, starts, reach = trials
    found, trial = numpy.empty(TRIAL, float32), numpy.empty(TRIAL, float32)
    scales, wanted, centre = numpy.zeros(LANES, float32), numpy.empty(LANES, float32), numpy.empty(LANES, float32)
    first, near, lowest = numpy.empty(GROUP, float32), numpy.empty(GROUP, float32), numpy.full(GROUP, numpy.inf, float32)
    largest = float32(0)
    d[:], c[:] = 0, 0
    _scales(block, kind[0], factors, trial, scales)
    _first_d(scales, kind[1], first)
    for start in range(len(starts)):
        wanted[:] = scales
        for group in range(GROUP):
            near[group] = first[group] * starts[start]
        for turn in range(2):
            for group in range(GROUP):
                largest = max(largest, abs(near[group]))
                near[group] = rounded(near[group])
            _nearest_c(wanted, near, kind[1], centre)
            attempt(block, kind, near, centre, float32(0), found)
            for away in range(1, reach + 1):
                for side in (-away, away):
                    attempt(block, kind, near, centre, float32(side), trial)
                    better(found, trial)
            _keep(found, near, d, c, lowest)
            if turn == 0:
                _refit(found, near, wanted)
    return largest


@compiled
def _scales(block, levels, factors, sums, scales):
    inverse, factor, best = numpy.empty(LANES, float32), numpy.empty(LANES, float32), numpy.zeros(LANES, float32)
    low, high = float32(-levels), float32(levels - 1)
    _inverses(block, inverse)
    for index in range(len(factors)):
        times = -(float32(levels) + factors[index])
        for lane in range(LANES):
            factor[lane] = inverse[lane] * times
        for i in range(8):
            for lane in range(LANES):
                one = whole(min(max(block[i * LANES + lane] * factor[lane], low), high))
                two = whole(min(max(block[(i + 8) * LANES + lane] * factor[lane], low), high))
                sums[FIRST + i * LANES + lane] = block[(i + 16) * LANES + lane] * one + block[(i + 24) * LANES + lane] * two
                one_2, two_2 = block[(i + 32) * LANES + lane] * one * one, block[(i + 40) * LANES + lane] * two * two
                sums[SECOND + i * LANES + lane] = one_2 + two_2
        fold(sums, FIRST)
        fold(sums, SECOND)
        for lane in range(LANES):
            ratio = sums[FIRST + lane] / sums[SECOND + lane]
            gain = ratio * sums[FIRST + lane]
            higher = gain > best[lane]
            scales[lane] = ratio if higher else scales[lane]
            best[lane] = gain if higher else best[lane]


@compiled
def _inverses(block, inverse):
    high, low = block[:LANES].copy(), block[:LANES].copy()
    for i in range(1, SUB):
        for lane in range(LANES):
            high[lane] = max(high[lane], block[i * LANES + lane])
            low[lane] = min(low[lane], block[i * LANES + lane])
    for lane in range(LANES):
        largest = high[lane] if high[lane] >= -low[lane] else low[lane]
        inverse[lane] = float32(0) if abs(largest) < float32(TINY) else float32(1) / largest


@compiled
def _first_d(scales, steps, first):
    high, low = scales[:GROUP].copy(), scales[:GROUP].copy()
    for sub in range(1, SUB):
        for group in range(GROUP):
            high[group] = max(high[group], scales[sub * GROUP + group])
            low[group] = min(low[group], scales[sub * GROUP + group])
    for group in range(GROUP):
        largest = high[group] if high[group] >= -low[group] else low[group]
        first[group] = largest * (float32(-1) / float32(steps)) + float32(0)


@compiled
def _nearest_c(scales, d, steps, c):
    low, high = float32(-steps), float32(steps - 1)
    for sub in range(SUB):
        for group in range(GROUP):
            ratio = float32(0) if d[group] == 0 else scales[sub * GROUP + group] / d[group]
            c[sub * GROUP + group] = whole(min(max(ratio, low), high))


@compiled
def _keep(found, near, d, c, lowest):
    """Takes over the super-blocks in which `found` has the lower error. `found` keeps no error."""
    fold_subs(found, ERROR)
    for sub in range(SUB):
        for group in range(GROUP):
            lower = found[ERROR + group] < lowest[group]
            c[sub * GROUP + group] = found[C + sub * GROUP + group] if lower else c[sub * GROUP + group]
    for group in range(GROUP):
        lower = found[ERROR + group] < lowest[group]
        d[group] = near[group] if lower else d[group]
        lowest[group] = found[ERROR + group] if lower else lowest[group]


@compiled
def _refit(found, near, wanted):
    """The d and the scales that the codes of `found` call for."""
    top, bottom = numpy.empty(LANES, float32), numpy.empty(LANES, float32)
    for lane in range(LANES):
        first, second, c = found[FIRST + lane], found[SECOND + lane], found[C + lane]
        wanted[lane] = first / second if second > 0 else float32(0)
        top[lane], bottom[lane] = c * first, c * c * second
    fold_subs(top, 0)
    fold_subs(bottom, 0)
    for group in range(GROUP):
        near[group] = top[group] / bottom[group] if bottom[group] > 0 else float32(0)
