"""BestRange of block_search.py compiled: scale and minimum of many blocks at once; see block_search_compiled.py."""
import numpy
from numpy import float32

from .block_search import FLAT, TINY
from .block_search_compiled import BEST, FIRST, MASS, MIDDLE, SCALE, SPAN, START, dot, extremes, reciprocal, times
from .compiled import compiled, whole


@compiled
def best_range(x, weight, ends, rounds, largest, work, state):
    """BestRange.search: SCALE and START + MIDDLE of `state`. x: (size, lanes), overwritten with the distance from the middle;
    weight: as x, or no rows; work: four arrays as x."""
    inverse, offset = numpy.empty(x.shape[1], float32), numpy.empty(x.shape[1], float32)
    centre(x, weight, largest, work, state)
    for turn in range(len(ends) + rounds):
        for lane in range(len(inverse)):
            if turn < len(ends):
                span = state[SPAN, lane]
                widened = float32(largest) + ends[turn, 0] + ends[turn, 1]
                inverse[lane] = float32(0) if span < float32(TINY) else widened * (float32(1) / span)
                offset[lane] = float32(0.5) * (float32(largest) + ends[turn, 1] - ends[turn, 0])
            else:
                inverse[lane] = reciprocal(state[SCALE, lane])
                offset[lane] = -state[START, lane] * inverse[lane]
        guess_range(x, weight, inverse, offset, largest, work, state)


@compiled
def centre(x, weight, largest, work, state):
    """BestRange.__init__; work[2] becomes ones."""
    share, ones, total = weight if len(weight) else work[2], work[2], work[3]
    extremes(x, state[START], state[SPAN])
    for lane in range(x.shape[1]):
        low = state[START, lane]
        span = state[SPAN, lane] - low
        middle = low + float32(0.5) * span
        state[SPAN, lane], state[MIDDLE, lane], state[START, lane] = span, middle, low - middle
        state[SCALE, lane], state[BEST, lane] = span / float32(largest), 0
    for i in range(len(x)):
        for lane in range(x.shape[1]):
            x[i, lane] -= state[MIDDLE, lane]
            ones[i, lane] = 1
    dot(share, ones, total)
    for lane in range(x.shape[1]):
        state[MASS, lane] = total[0, lane]
    dot(share, x, total)
    for lane in range(x.shape[1]):
        state[FIRST, lane] = total[0, lane]


@compiled
def guess_range(x, weight, inverse, offset, largest, work, state):
    """BestRange.guess."""
    code, share, ones, total = work[0], work[0], work[2], work[3]
    sums = numpy.empty((3, len(inverse)), float32)
    for i in range(len(x)):
        for lane in range(len(inverse)):
            code[i, lane] = whole(min(max(x[i, lane] * inverse[lane] + offset[lane], float32(0)), float32(largest)))
    if len(weight):
        share = work[1]
        times(weight, code, share)
    for k in range(3):
        dot(share, ones if k == 0 else code if k == 1 else x, total)
        for lane in range(len(inverse)):
            sums[k, lane] = total[0, lane]
    for lane in range(len(inverse)):
        s, mass, first = sums[0, lane], state[MASS, lane], state[FIRST, lane]
        u, wide = mass * sums[2, lane] - first * s, mass * sums[1, lane]
        d = wide - s * s
        scale = u / d
        better = d > float32(FLAT) * wide and scale * u > state[BEST, lane]
        start = (first - scale * s) / mass
        state[BEST, lane] = scale * u if better else state[BEST, lane]
        state[START, lane] = start if better else state[START, lane]
        state[SCALE, lane] = scale if better else state[SCALE, lane]
