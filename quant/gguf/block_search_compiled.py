"""BestScale of block_search.py compiled: the same guesses on many blocks at once, element i of each in row i.

Every float32 operation is the one of the torch path. A sum over a block starts with four rows a quarter of the block apart,
(0 + 2) + (1 + 3): these are the first two halvings of lanes.tree. Loops stand where a slice could be assigned: numba compiles a
second longer for each of those.
"""
import math

import numpy
from numpy import float32, int32, int64, uint32

from .block_search import TINY
from .compiled import compiled, inlined, rounded, whole
from .iq4_grid import HALVES, NEAREST, VALUES

UNEVEN = int64(0)                                  # for the grid of iq4_grid.py; else it is -grid ... grid - 1
LONGEST = float32(VALUES[0])
TABLE = NEAREST.numpy()
SCALE, POWER, BEST, START, MASS, FIRST, SPAN, MIDDLE = range(8)
STATES = 8                                         # rows of `state`, in that order


@compiled
def load(rows, first, count, lanes):
    """lanes[i, lane] = rows[first + lane, i], and 0 from `count` on. The rows of a weight come again and again."""
    for lane in range(count):
        row = (first + lane) % len(rows)
        for i in range(len(lanes)):
            lanes[i, lane] = rows[row, i]
    for i in range(len(lanes)):
        for lane in range(count, lanes.shape[1]):
            lanes[i, lane] = 0


@compiled
def extremes(x, low, high):
    for lane in range(len(low)):
        low[lane], high[lane] = x[0, lane], x[0, lane]
    for i in range(1, len(x)):
        for lane in range(len(low)):
            low[lane] = min(low[lane], x[i, lane])
            high[lane] = max(high[lane], x[i, lane])


@compiled
def intervals(x, i, inverse, place):
    """As iq4_grid: where its tables have what is nearest to row i of x, times inverse."""
    for lane in range(len(inverse)):
        scaled = min(max(x[i, lane] * inverse[lane], float32(-HALVES / 2)), float32((HALVES - 1) / 2))
        place[lane] = int32(math.floor(scaled + scaled)) + int32(HALVES)


@compiled
def to_grid(x, inverse, grid, code):
    """The values of the grid nearest to x * inverse."""
    low, high = float32(-grid), float32(grid - 1)
    place = numpy.empty(len(inverse), int32)
    for i in range(len(x)):
        if grid == UNEVEN:
            intervals(x, i, inverse, place)
            for lane in range(len(inverse)):
                code[i, lane] = TABLE[uint32(place[lane])]
        else:
            for lane in range(len(inverse)):
                code[i, lane] = whole(min(max(x[i, lane] * inverse[lane], low), high))


@compiled
def times(x, y, product):
    for i in range(len(x)):
        for lane in range(x.shape[1]):
            product[i, lane] = x[i, lane] * y[i, lane]


@compiled
def dot(x, y, total):
    """lanes.tree of x * y, in row 0 of total; a quarter of the rows of x is used."""
    n = len(x) // 4
    for i in range(n):
        for lane in range(x.shape[1]):
            total[i, lane] = (x[i, lane] * y[i, lane] + x[i + 2 * n, lane] * y[i + 2 * n, lane]) \
                + (x[i + n, lane] * y[i + n, lane] + x[i + 3 * n, lane] * y[i + 3 * n, lane])
    while n > 1:
        n //= 2
        for i in range(n):
            for lane in range(x.shape[1]):
                total[i, lane] += total[i + n, lane]


@inlined
def reciprocal(scale):
    stored = rounded(scale)
    return float32(0) if stored == 0 else float32(1) / stored


@compiled
def guess_scale(x, weight, inverse, grid, work, state):
    """BestScale.guess. weight: as x, or no rows; work: four arrays as x."""
    code, share, a, b = work[0], work[0], work[2], work[3]
    to_grid(x, inverse, grid, code)
    if len(weight):
        share = work[1]
        times(weight, code, share)
    dot(share, x, a)
    dot(share, code, b)
    for lane in range(len(inverse)):
        first, power = a[0, lane], b[0, lane]
        better = power > 0 and first * first > state[BEST, lane] * power
        scale = first / power
        state[BEST, lane] = scale * first if better else state[BEST, lane]
        state[SCALE, lane] = scale if better else state[SCALE, lane]
        state[POWER, lane] = power if better else state[POWER, lane]


@compiled
def best_scale(x, weight, levels, rounds, grid, work, state):
    """BestScale.search: SCALE and POWER of `state`. x: (size, lanes); weight: as x, or no rows; work: four arrays as x."""
    low, high = numpy.empty(x.shape[1], float32), numpy.empty(x.shape[1], float32)
    inverse, tried = numpy.empty(x.shape[1], float32), numpy.empty(x.shape[1], float32)
    extremes(x, low, high)
    for lane in range(len(low)):
        peak = high[lane] if high[lane] >= -low[lane] else low[lane]
        inverse[lane] = float32(0) if abs(peak) < float32(TINY) else float32(1) / peak
        state[SCALE, lane] = peak / (LONGEST if grid == UNEVEN else float32(-grid)) + float32(0)
        state[POWER, lane], state[BEST, lane] = 0, 0
    for turn in range(len(levels) + rounds):
        for lane in range(len(low)):
            tried[lane] = levels[turn] * inverse[lane] if turn < len(levels) else reciprocal(state[SCALE, lane])
        guess_scale(x, weight, tried, grid, work, state)
