"""plain_blocks.py compiled: whole bands in one call, without the GIL, the same bytes.

The rules that do not search gain nothing here, except Q8_0's: the reference setting is torch's, band by band.
"""
import math
from functools import partial

import numpy
import torch
from numpy import float32, int8, int32, int64, uint8

from . import plain_blocks
from .block_search_compiled import MIDDLE, SCALE, START, STATES, best_scale, load, reciprocal, to_grid
from .block_search_range_compiled import best_range
from .compiled import LANES, compiled, rounded, whole
from .lanes import half
from .plain_blocks import BELOW_HALF, LAYOUTS, SEARCH, SIZE, SIZES
from .plain_blocks_scales import ENDS, LEVELS, ROUNDS

STEP = 1 << 17                                     # elements that torch works on at once: they stay in L2


def encode(name: str, band: torch.Tensor, weight: torch.Tensor | None, setting: str) -> torch.Tensor:
    """As plain_blocks.encode."""
    (bits, fields), blocks = LAYOUTS[name], band.reshape(-1, SIZE)
    scales, stored = torch.empty(fields, len(blocks), dtype=torch.float32), torch.empty(len(blocks), SIZES[name], dtype=torch.uint8)
    if name == "Q8_0" and setting != SEARCH:
        _encode_q8_0(blocks.numpy(), scales[0].numpy(), stored.numpy())
    elif setting == "reference":
        return tiled(plain_blocks.ENCODERS[name], band)
    else:
        call, guesses = (_encode_scale, LEVELS) if fields == 1 else (_encode_range, ENDS)
        guesses = numpy.array(guesses[bits, setting], float32)
        call(blocks.numpy(), weight_rows(weight), guesses, ROUNDS[setting], bits, scales.numpy(), stored.numpy())
    return with_scales(stored, *scales).view(len(band), -1)


def tiled(call, band: torch.Tensor) -> torch.Tensor:
    """The torch encoder's reference of a band, some rows at a time."""
    return torch.cat([call(rows, None, "reference") for rows in band.split(max(1, STEP // band.shape[1]))])


def weight_rows(weight: torch.Tensor | None) -> numpy.ndarray:
    """(columns / 32, 32) for the kernels; no rows for None."""
    return numpy.empty((0, SIZE), float32) if weight is None else weight.reshape(-1, SIZE).numpy()


def with_scales(stored: torch.Tensor, *scales: torch.Tensor) -> torch.Tensor:
    """`stored` (n, bytes), with the scales as float16 in its first bytes: they are all even, and so is the block's size."""
    for place, scale in enumerate(scales):
        stored.view(torch.int16)[:, place] = half(scale).view(torch.int16)
    return stored


@compiled
def _encode_q8_0(blocks, scales, stored):
    bits, codes = blocks.view(int32), stored.view(int8)
    for block in range(len(blocks)):
        largest = int32(0)
        for i in range(SIZE):                      # as integers, which reduce to vectors
            largest = max(largest, bits[block, i] & int32(0x7FFFFFFF))
        scale = int32(largest).view(float32) / float32(127)
        inverse = float32(1) / scale
        if not inverse < float32(numpy.inf):
            inverse = float32(0)
        for i in range(SIZE):
            scaled = blocks[block, i] * inverse
            codes[block, 2 + i] = int8(int32(scaled + math.copysign(float32(BELOW_HALF), scaled)))
        scales[block] = scale


@compiled
def _encode_scale(blocks, weight, levels, rounds, bits, scales, stored):
    x, share = numpy.empty((SIZE, LANES), float32), numpy.empty((SIZE if len(weight) else 0, LANES), float32)
    work, state = numpy.empty((4, SIZE, LANES), float32), numpy.empty((STATES, LANES), float32)
    middle, inverse, packed = 1 << bits - 1, numpy.empty(LANES, float32), numpy.empty((SIZE, LANES), uint8)
    for first in range(0, len(blocks), LANES):
        count = min(LANES, len(blocks) - first)
        load(blocks, first, count, x)
        if len(weight):
            load(weight, first, count, share)
        best_scale(x, share, levels, rounds, middle, work, state)
        for lane in range(LANES):
            inverse[lane] = reciprocal(state[SCALE, lane])
        to_grid(x, inverse, middle, work[0])
        pack(work[0], middle, bits, packed)
        for lane in range(count):
            scales[0, first + lane] = state[SCALE, lane]
        store(packed, first, count, stored.shape[1] - 2 * len(scales), stored)


@compiled
def _encode_range(blocks, weight, ends, rounds, bits, scales, stored):
    x, share = numpy.empty((SIZE, LANES), float32), numpy.empty((SIZE if len(weight) else 0, LANES), float32)
    work, state = numpy.empty((4, SIZE, LANES), float32), numpy.empty((STATES, LANES), float32)
    largest, inverse, packed = (1 << bits) - 1, numpy.empty(LANES, float32), numpy.empty((SIZE, LANES), uint8)
    for first in range(0, len(blocks), LANES):
        count = min(LANES, len(blocks) - first)
        load(blocks, first, count, x)
        if len(weight):
            load(weight, first, count, share)
        best_range(x, share, ends, rounds, largest, work, state)
        load(blocks, first, count, x)
        for lane in range(LANES):
            state[START, lane] += state[MIDDLE, lane]
            inverse[lane] = reciprocal(state[SCALE, lane])
            state[MIDDLE, lane] = rounded(state[START, lane])
        for i in range(SIZE):
            for lane in range(LANES):
                scaled = (x[i, lane] - state[MIDDLE, lane]) * inverse[lane]
                work[0, i, lane] = whole(min(max(scaled, float32(0)), float32(largest)))
        pack(work[0], int64(0), bits, packed)
        for lane in range(count):
            scales[0, first + lane], scales[1, first + lane] = state[SCALE, lane], state[START, lane]
        store(packed, first, count, stored.shape[1] - 2 * len(scales), stored)


@compiled
def pack(codes, zero, bits, packed):
    """The bytes of codes + zero, at the end of `packed`, (32, lanes): int8; or nibbles in 16 rows, fifth bits in 4 above them."""
    for i in range(SIZE if bits == 8 else 0):
        for lane in range(codes.shape[1]):
            packed[i, lane] = uint8(int32(codes[i, lane]))
    if bits == 8:
        return
    for i in range(SIZE):
        byte, shift = 16 + i % 16, 4 * (i // 16)
        for lane in range(codes.shape[1]):
            nibble = (uint8(codes[i, lane] + float32(zero)) & uint8(15)) << shift
            packed[byte, lane] = nibble if i < 16 else packed[byte, lane] | nibble
    for i in range(SIZE if bits == 5 else 0):
        byte, shift = 12 + i // 8, i % 8
        for lane in range(codes.shape[1]):
            fifth = (uint8(codes[i, lane] + float32(zero)) >> 4) << shift
            packed[byte, lane] = fifth if shift == 0 else packed[byte, lane] | fifth


@compiled
def store(packed, first, count, size, stored):
    """The last `size` bytes of `count` blocks from `first` on, from the last rows of `packed`."""
    for lane in range(count):
        for i in range(size):
            stored[first + lane, stored.shape[1] - size + i] = packed[SIZE - size + i, lane]


ENCODERS = {name: partial(encode, name) for name in LAYOUTS}
