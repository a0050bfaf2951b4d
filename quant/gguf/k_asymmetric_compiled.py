"""Q4_K, Q5_K and Q2_K compiled with numba: the search of k_asymmetric_search.py in one call for a band, without the GIL.

The steps are in k_asymmetric_search_compiled.py.
"""
from functools import partial
from typing import NamedTuple

import numpy
import torch
from numpy import float32

from . import k_asymmetric
from .compiled import HALF_MAX, compiled, rounded
from .k_asymmetric_forms import BEST, FORMS, MAX
from .k_asymmetric_pairs_compiled import lined
from .k_asymmetric_search_compiled import GROUP, first, grids, know, recode
from .k_asymmetric_sums_compiled import inner, level, positions
from .lanes import half

TILE = 128 * 1024                                  # elements of a tile of the reference, which runs in torch: they stay in L2


class Lanes(NamedTuple):
    """What a group works on: x, weight (size, lanes); spots: codes before rounding;
    terms: products and, in its first row, sums; the others: rows of fields."""

    x: numpy.ndarray
    weight: numpy.ndarray
    spots: numpy.ndarray
    terms: numpy.ndarray
    sums: numpy.ndarray
    known: numpy.ndarray
    line: numpy.ndarray
    stored: numpy.ndarray
    best: numpy.ndarray
    tried: numpy.ndarray
    work: numpy.ndarray
    kept: numpy.ndarray


class Reach(NamedTuple):
    """Form and effort: (top, code_top); (top + a + b, a) of the grids; factors on d and dmin; steps; rounds."""

    tops: numpy.ndarray
    grids: numpy.ndarray
    starts: numpy.ndarray
    steps: numpy.ndarray
    rounds: int


def encode(name: str, band: torch.Tensor, weight: torch.Tensor | None, setting: str) -> torch.Tensor:
    """As `k_asymmetric.encode`; the reference is its own, in tiles."""
    if setting == "reference":
        step = max(1, TILE // band.shape[1])
        tiles = (band[first:first + step] for first in range(0, len(band), step))
        return torch.cat([k_asymmetric.encode(name, tile, None, setting) for tile in tiles])
    form, effort = FORMS[name], (MAX if setting == "max" else BEST)[name]
    x = band.reshape(-1, form.count, form.size).numpy()
    share = x[:0] if weight is None else k_asymmetric.floored(weight).view(-1, form.count, form.size).numpy()
    tries = [(form.top + a + b, a) for a, b in effort.grids]
    figures = (numpy.array(part, float32) for part in ((form.top, form.code_top), tries, effort.starts, effort.steps))
    d, codes = numpy.empty((len(x), 2), float32), numpy.empty((2, *x.shape[:2]), numpy.uint8)
    levels = numpy.empty(x.shape, numpy.uint8)
    _encode(x, share, Reach(*figures, effort.rounds), (d, codes, levels))
    scales, minima = torch.from_numpy(codes).transpose(1, 2)
    levels = torch.from_numpy(levels).permute(2, 1, 0)
    return k_asymmetric.packed(name, half(torch.from_numpy(d)), scales, minima, levels).view(len(band), -1)


@compiled
def _encode(blocks, share, reach, out):
    _, count, size = blocks.shape
    lanes = GROUP * count
    terms, rows = numpy.empty((size // 2, 3 * lanes), float32), numpy.empty((33, lanes), float32)
    x, weight, spots = numpy.empty((size, lanes), float32), numpy.ones((size, lanes), float32), numpy.empty((size, lanes), float32)
    work = Lanes(x, weight, spots, terms, terms[0].reshape(3, lanes), rows[:2], rows[2:4], rows[4:9], rows[9:14], rows[14:19],
                 rows[19:26], rows[26:])
    for block in range(0, len(blocks), GROUP):
        _load(blocks, block, work.x)
        if len(share):
            _load(share, block, work.weight)
        know(work, reach)
        grids(work, reach)
        first(work, reach)
        for turn in range(reach.rounds):
            recode(work, reach, turn)
        _store(work, reach, out, block)


@inner
def _load(blocks, start, x):
    _, count, size = blocks.shape
    for group in range(GROUP):
        block = blocks[(start + group) % len(blocks)]
        for j in range(count):
            for i in range(size):
                x[i, j * GROUP + group] = block[j, i]


@inner
def _store(work, reach, out, start):
    d, codes, levels = out
    best, spare, spots = work.best, work.work, work.spots
    lined(best, work.line)
    positions(work.x, work.line, spots)
    for group in range(min(GROUP, len(d) - start)):
        for row in range(2):
            least = spare[5 + row, group]
            d[start + group, row] = best[row, group] if rounded(least) <= HALF_MAX else least
        for j in range(codes.shape[2]):
            k = j * GROUP + group
            codes[0, start + group, j], codes[1, start + group, j] = numpy.uint8(best[2, k]), numpy.uint8(best[3, k])
            for i in range(len(spots)):
                levels[start + group, j, i] = numpy.uint8(level(spots[i, k], reach.tops[0]))


ENCODERS = {name: partial(encode, name) for name in FORMS}
