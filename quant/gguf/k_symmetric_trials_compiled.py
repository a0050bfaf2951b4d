"""What the compiled searches of Q6_K and Q3_K share: rows of lanes, their sums, and one trial of scales.

GROUP super-blocks at once. A row is LANES values, one for each sub-block: lane = sub-block * GROUP + super-block, so that sums over
the elements and sums over the sub-blocks both add one half of an array to the other. `block` is 48 rows: x, weight * x and weight,
element after element. It is flat, with distances known when compiled: only then the loops become vector instructions.
"""
import numpy
from numpy import float32

from .compiled import compiled, whole

GROUP = 16                                         # super-blocks: one vector of 16 float32
SUB = 16                                           # sub-blocks of a super-block, elements of a sub-block
LANES = SUB * GROUP
HALF = 8 * LANES
ERROR, FIRST, SECOND, C = 0, HALF, 2 * HALF, 3 * HALF   # what a trial holds, each in its first LANES; C after them
TRIAL = 3 * HALF + LANES


@compiled
def fold(sums, first):
    """Adds the 8 rows from `first` on, in halves, into the first of them."""
    for i in range(4 * LANES):
        sums[first + i] += sums[first + 4 * LANES + i]
    for i in range(2 * LANES):
        sums[first + i] += sums[first + 2 * LANES + i]
    for i in range(LANES):
        sums[first + i] += sums[first + LANES + i]


@compiled
def fold_subs(row, first):
    """Adds the 16 sub-blocks of a row, in halves, into its first GROUP."""
    for i in range(8 * GROUP):
        row[first + i] += row[first + 8 * GROUP + i]
    for i in range(4 * GROUP):
        row[first + i] += row[first + 4 * GROUP + i]
    for i in range(2 * GROUP):
        row[first + i] += row[first + 2 * GROUP + i]
    for i in range(GROUP):
        row[first + i] += row[first + GROUP + i]


@compiled
def divisors(d, c, step):
    for sub in range(SUB):
        for group in range(GROUP):
            scale = d[group] * c[sub * GROUP + group]
            step[sub * GROUP + group] = scale if scale != 0 else float32(numpy.inf)


@compiled
def nearest_codes(block, levels, d, c, stored):
    """Fills stored, 16 rows of uint8: codes + levels, the nearest for d * c."""
    step = numpy.empty(LANES, float32)
    low, high = float32(-levels), float32(levels - 1)
    divisors(d, c, step)
    for i in range(SUB):
        for lane in range(LANES):
            code = whole(min(max(block[i * LANES + lane] / step[lane], low), high))
            stored[i * LANES + lane] = numpy.uint8(numpy.int32(code - low))


@compiled
def attempt(block, kind, d, centre, side, trial):
    """A trial: its c, error and sums."""
    step, divisor = numpy.empty(LANES, float32), numpy.empty(LANES, float32)
    low, high = float32(-kind[0]), float32(kind[0] - 1)
    for lane in range(LANES):
        trial[C + lane] = min(max(centre[lane] + side, float32(-kind[1])), float32(kind[1] - 1))
    for sub in range(SUB):
        for group in range(GROUP):
            step[sub * GROUP + group] = d[group] * trial[C + sub * GROUP + group]
    divisors(d, trial[C:], divisor)
    for i in range(8):
        for lane in range(LANES):
            x, y = block[i * LANES + lane], block[(i + 8) * LANES + lane]
            w, v = block[(i + 32) * LANES + lane], block[(i + 40) * LANES + lane]
            one = whole(min(max(x / divisor[lane], low), high))
            two = whole(min(max(y / divisor[lane], low), high))
            trial[FIRST + i * LANES + lane] = block[(i + 16) * LANES + lane] * one + block[(i + 24) * LANES + lane] * two
            trial[SECOND + i * LANES + lane] = w * one * one + v * two * two
            one, two = one * step[lane] - x, two * step[lane] - y
            trial[ERROR + i * LANES + lane] = one * one * w + two * two * v
    fold(trial, ERROR)
    fold(trial, FIRST)
    fold(trial, SECOND)


@compiled
def better(found, trial):
    """Takes over the sub-blocks in which the trial has the lower error."""
    for lane in range(LANES):
        lower = trial[ERROR + lane] < found[ERROR + lane]
        found[ERROR + lane] = trial[ERROR + lane] if lower else found[ERROR + lane]
        found[FIRST + lane] = trial[FIRST + lane] if lower else found[FIRST + lane]
        found[SECOND + lane] = trial[SECOND + lane] if lower else found[SECOND + lane]
        found[C + lane] = trial[C + lane] if lower else found[C + lane]
