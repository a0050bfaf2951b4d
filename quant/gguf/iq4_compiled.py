"""iq4.py compiled: whole bands in one call, without the GIL, the same bytes. The reference setting is torch's."""
import numpy
import torch
from numpy import float32, int32, int64, uint8, uint32

from . import iq4
from .block_search_compiled import POWER, SCALE, STATES, UNEVEN, best_scale, intervals, load, reciprocal, to_grid
from .compiled import LANES, compiled, rounded
from .iq4_grid import CODES
from .iq4_scales import BLOCKS, LEVELS, ROUNDS, SIDE, SUPER_LEVELS
from .plain_blocks import SIZE
from .plain_blocks_compiled import pack, store, tiled, weight_rows, with_scales

TABLE = CODES.numpy()
SUPERS = LANES // BLOCKS


def encode_nl(band: torch.Tensor, weight: torch.Tensor | None, setting: str) -> torch.Tensor:
    """As iq4.encode_nl."""
    if setting == "reference":
        return tiled(iq4.encode_nl, band)
    blocks = band.reshape(-1, SIZE)
    scales, stored = torch.empty(len(blocks)), torch.empty(len(blocks), iq4.NL_BYTES, dtype=torch.uint8)
    levels = numpy.array(LEVELS[setting], float32)
    _encode(blocks.numpy(), weight_rows(weight), levels, levels[:0], ROUNDS[setting], scales.numpy(), stored.numpy())
    return with_scales(stored, scales).view(len(band), -1)


def encode_xs(band: torch.Tensor, weight: torch.Tensor | None, setting: str) -> torch.Tensor:
    """As iq4.encode_xs."""
    if setting == "reference":
        return tiled(iq4.encode_xs, band)
    blocks = band.reshape(-1, SIZE)
    scales, stored = torch.empty(len(blocks) // BLOCKS), torch.empty(len(blocks) // BLOCKS, iq4.XS_BYTES, dtype=torch.uint8)
    levels, super_levels = numpy.array(LEVELS[setting], float32), numpy.array(SUPER_LEVELS[setting], float32)
    _encode(blocks.numpy(), weight_rows(weight), levels, super_levels, ROUNDS[setting], scales.numpy(), stored.numpy())
    return with_scales(stored, scales).view(len(band), -1)


@compiled
def _encode(blocks, weight, levels, super_levels, rounds, scales, stored):
    """IQ4_XS where there are super_levels, else IQ4_NL."""
    x, share = numpy.empty((SIZE, LANES), float32), numpy.empty((SIZE if len(weight) else 0, LANES), float32)
    work, state = numpy.empty((4, SIZE, LANES), float32), numpy.empty((STATES, LANES), float32)
    used, inverse, packed = numpy.empty(LANES, float32), numpy.empty(LANES, float32), numpy.empty((SIZE, LANES), uint8)
    for first in range(0, len(blocks), LANES):
        count = min(LANES, len(blocks) - first)
        load(blocks, first, count, x)
        if len(weight):
            load(weight, first, count, share)
        best_scale(x, share, levels, rounds, UNEVEN, work, state)
        if len(super_levels):
            choose_supers(state, super_levels, rounds, used, first // BLOCKS, scales, stored)
        else:
            for lane in range(count):
                scales[first + lane] = state[SCALE, lane]
            for lane in range(LANES):
                used[lane] = rounded(state[SCALE, lane])
        for lane in range(LANES):
            inverse[lane] = float32(0) if used[lane] == 0 else float32(1) / used[lane]
        to_codes(x, inverse, work[0])
        pack(work[0], int64(0), 4, packed)
        if len(super_levels):
            store_supers(packed, first // BLOCKS, count, stored)
        else:
            store(packed, first, count, SIZE // 2, stored)


@compiled
def to_codes(x, inverse, code):
    """Codes of the values nearest to x * inverse."""
    place = numpy.empty(len(inverse), int32)
    for i in range(len(x)):
        intervals(x, i, inverse, place)
        for lane in range(len(inverse)):
            code[i, lane] = TABLE[uint32(place[lane])]


@compiled
def choose_supers(state, super_levels, rounds, used, first, scales, stored):
    """As iq4_scales.least_super: d, the bytes of the scales, and in `used` what each block is decoded with."""
    x, share = numpy.empty((BLOCKS, SUPERS), float32), numpy.empty((BLOCKS, SUPERS), float32)
    work, found = numpy.empty((4, BLOCKS, SUPERS), float32), numpy.empty((STATES, SUPERS), float32)
    inverse = numpy.empty(SUPERS, float32)
    for lane in range(LANES):
        x[lane % BLOCKS, lane // BLOCKS] = state[SCALE, lane]
        share[lane % BLOCKS, lane // BLOCKS] = state[POWER, lane]
    best_scale(x, share, super_levels, rounds, int64(SIDE), work, found)
    for lane in range(SUPERS):
        inverse[lane] = reciprocal(found[SCALE, lane])
    to_grid(x, inverse, int64(SIDE), work[0])
    for lane in range(LANES):
        used[lane] = rounded(found[SCALE, lane // BLOCKS]) * work[0, lane % BLOCKS, lane // BLOCKS]
    for lane in range(min(SUPERS, len(scales) - first)):
        scales[first + lane] = found[SCALE, lane]
        for i in range(2, 8):
            stored[first + lane, i] = 0
        for i in range(BLOCKS):
            bits = uint8(work[0, i, lane] + float32(SIDE))
            stored[first + lane, 2 + i // 4] |= (bits >> 4) << (2 * (i % 4))
            stored[first + lane, 4 + i // 2] |= (bits & uint8(15)) << (4 * (i % 2))


@compiled
def store_supers(packed, first, count, stored):
    """The codes of all blocks behind the scales of their super-block."""
    for lane in range(count):
        for i in range(SIZE // 2):
            stored[first + lane // BLOCKS, 8 + lane % BLOCKS * (SIZE // 2) + i] = packed[SIZE // 2 + i, lane]


ENCODERS = {"IQ4_NL": encode_nl, "IQ4_XS": encode_xs}
