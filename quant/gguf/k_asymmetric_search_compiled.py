"""The steps of k_asymmetric_search.py compiled with numba, for the lanes of GROUP super-blocks: work is a `Lanes`, reach a `Reach`.

Rows of work.work: 0..4 are anyone's, 5 and 6 the first d and dmin.
"""
from numpy import float32

from . import k_asymmetric_search
from .k_asymmetric_pairs_compiled import clamped, coded, floats, joint, keep, lined, nearest_low, tree
from .k_asymmetric_sums_compiled import INFINITE, columns, excess, fitted, gain, inner, moments, positions

GROUP = 8                                          # super-blocks: 64 or 128 lanes, whose weights are 8 KB, a fraction of L1
FLAT = float32(k_asymmetric_search.FLAT)


@inner
def know(work, reach):
    """W and X, the range of the weights, and the line of the plain grid."""
    x, weight, spots, known, line, span = work.x, work.weight, work.spots, work.known, work.line, work.work
    lanes = x.shape[1]
    for field in range(2):
        for i in range(len(x)):
            for k in range(lanes):
                spots[i, k] = x[i, k] * weight[i, k] if field else weight[i, k]
        columns(spots)
        for k in range(lanes):
            known[field, k] = spots[0, k]
    for k in range(lanes):
        span[0, k], line[1, k] = x[0, k], float32(0)
    for i in range(len(x)):
        for k in range(lanes):
            span[0, k] = x[i, k] if x[i, k] > span[0, k] else span[0, k]
            line[1, k] = -x[i, k] if -x[i, k] > line[1, k] else line[1, k]
    for k in range(lanes):
        width = span[0, k] + line[1, k]
        span[1, k] = float32(1) / width if width > FLAT else float32(0)
        line[0, k] = width * (float32(1) / reach.tops[0])
        span[2, k] = -INFINITE


@inner
def grids(work, reach):
    """Step 1, and the line of the codes nearest to the line found."""
    known, line, span, sums, kept = work.known, work.line, work.work, work.sums, work.best
    for number in range(len(reach.grids) + 1):
        if number < len(reach.grids):
            lay(work.x, span[1], line[1], reach.grids[number], work.spots)
        else:                                      # once more, for the codes nearest to the line found
            fitted(known, kept, line)
            positions(work.x, line, work.spots)
        moments(work.x, work.weight, work.spots, reach.tops[0], work.terms)
        gain(known, sums, span[3])
        for k in range(len(span[3])):
            higher = span[3, k] > span[2, k]
            span[2, k] = span[3, k] if higher else span[2, k]
            for row in range(3):
                kept[row, k] = sums[row, k] if higher or number == 0 else kept[row, k]
    fitted(known, sums, line)


@inner
def lay(x, inverse, low, grid, spots):
    """Into spots: where the weights lie on a grid."""
    for i in range(len(x)):
        for k in range(len(low)):
            spots[i, k] = (x[i, k] + low[k]) * (inverse[k] * grid[0]) - grid[1]


@inner
def first(work, reach):
    """Step 2."""
    known, line, stored, best, tried, spare = work.known, work.line, work.stored, work.best, work.tried, work.work
    lanes, code_top = line.shape[1], reach.tops[1]
    for row in range(2):
        for k in range(lanes):
            spare[5 + row, k] = line[row, k] if line[row, k] < INFINITE else INFINITE
        for k in range(GROUP, lanes):
            spare[5 + row, k % GROUP] = max(spare[5 + row, k], spare[5 + row, k % GROUP])
        for k in range(GROUP):
            spare[5 + row, k] *= float32(1) / code_top
        for k in range(GROUP, lanes):
            spare[5 + row, k] = spare[5 + row, k % GROUP]
    for number in range(len(reach.starts)):
        for k in range(lanes):
            tried[0, k] = floats(spare[5, k] * reach.starts[number, 0])
            tried[1, k] = floats(spare[6, k] * reach.starts[number, 1])
        coded(known, work.sums, line, tried, code_top)
        joint(known, work.sums, tried, GROUP, spare)
        keep(tried, best, number == 0)
    for k in range(lanes):
        stored[0, k], stored[1, k] = best[0, k], best[1, k]
    coded(known, work.sums, line, stored, code_top)


@inner
def recode(work, reach, turn):
    """Step 3, once; best becomes the round of lowest excess."""
    known, line, stored = work.known, work.line, work.stored
    if turn:
        lined(stored, line)
        fitted(known, work.sums, line)
        joint(known, work.sums, stored, GROUP, work.work)
        coded(known, work.sums, line, stored, reach.tops[1])
    lined(stored, line)
    positions(work.x, line, work.spots)
    moments(work.x, work.weight, work.spots, reach.tops[0], work.terms)
    if len(reach.steps):
        move(work, reach)
    lined(stored, line)
    for k in range(line.shape[1]):
        stored[4, k] = excess(known, work.sums, k, line[0, k], line[1, k])
    tree(stored[4], GROUP)
    keep(stored, work.best, turn == 0)


@inner
def move(work, reach):
    """Scales a few codes away, where the error of their sub-block is lower."""
    known, line, stored, tried = work.known, work.line, work.stored, work.tried
    before, kept, at = work.kept[:3], work.kept[3:6], work.kept[6]
    for k in range(line.shape[1]):
        at[k] = stored[2, k]
        for row in range(3):
            before[row, k] = kept[row, k] = work.sums[row, k]
        stored[4, k] = excess(known, before, k, line[0, k], line[1, k])
    for number in range(len(reach.steps)):
        for k in range(line.shape[1]):
            tried[2, k] = clamped(at[k] + reach.steps[number], reach.tops[1])
            scale = stored[0, k] * tried[2, k]
            tried[3, k] = clamped(nearest_low(known, before, k, scale, stored[1, k]), reach.tops[1])
            line[0, k], line[1, k] = scale, stored[1, k] * tried[3, k]
        positions(work.x, line, work.spots)
        moments(work.x, work.weight, work.spots, reach.tops[0], work.terms)
        for k in range(line.shape[1]):
            error = excess(known, work.sums, k, line[0, k], line[1, k])
            if error < stored[4, k]:
                stored[2, k], stored[3, k], stored[4, k] = tried[2, k], tried[3, k], error
                for row in range(3):
                    kept[row, k] = work.sums[row, k]
    for k in range(line.shape[1]):
        for row in range(3):
            work.sums[row, k] = kept[row, k]
