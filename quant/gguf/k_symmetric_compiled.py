"""Q6_K and Q3_K compiled with numba: one call for a band, without the GIL, the bytes of `k_symmetric.py`.

Imported only where numba is installed. The passes are in `k_symmetric_search_compiled.py` and `k_symmetric_reference_compiled.py`;
here GROUP super-blocks are spread over rows for them, and their codes packed.
"""
from functools import partial

import numpy
import torch
from numpy import float32, uint8

from .compiled import compiled
from .k_symmetric import LEAST, UNPACK
from .k_symmetric_layout import KINDS
from .k_symmetric_reference_compiled import encode as encode_reference
from .k_symmetric_search import SETTINGS, Setting
from .k_symmetric_search_compiled import search
from .k_symmetric_trials_compiled import GROUP, LANES, SUB, nearest_codes
from .lanes import half

REFERENCE = Setting(())                            # no trials: llama.cpp's own search


def encode(name: str, band: torch.Tensor, weight: torch.Tensor | None, setting: str) -> torch.Tensor:
    """As `k_symmetric.encode`; the band is in the memory of the CPU."""
    blocks, chosen = band.reshape(-1, SUB * SUB).numpy(), REFERENCE if setting == "reference" else SETTINGS[name, setting]
    weights = numpy.ones((1, SUB * SUB), float32) if weight is None else weight.clamp(min=LEAST).reshape(-1, SUB * SUB).numpy()
    stored, d = torch.empty(len(blocks), UNPACK[name][1], dtype=torch.uint8), torch.empty(len(blocks))
    trials = numpy.array(chosen.factors, float32), numpy.array(chosen.starts, float32), chosen.reach
    largest = _encode(blocks, weights, (KINDS[name].levels, KINDS[name].steps), trials, (stored.numpy(), d.numpy()))
    half(torch.tensor(largest))
    stored[:, -2:] = half(d)[:, None].view(torch.uint8)
    return stored.view(len(band), -1)


ENCODERS = {name: partial(encode, name) for name in KINDS}


@compiled
def _encode(blocks, weights, kind, trials, result):
    """trials: factors, starts, reach; no factors: the reference. Fills all bytes but d's, and d. Returns the largest |d|."""
    out, scales = result
    block, d, c = numpy.zeros(48 * LANES, float32), numpy.empty(GROUP, float32), numpy.empty(LANES, float32)
    stored, packed = numpy.empty(SUB * LANES, uint8), numpy.empty(210 * GROUP, uint8)
    largest = float32(0)
    for start in range(0, len(blocks), GROUP):
        count = min(GROUP, len(blocks) - start)
        _spread(blocks, weights, start, count, block)
        if len(trials[0]):
            largest = max(largest, search(block, kind, trials, d, c))
            nearest_codes(block, kind[0], d, c, stored)
        else:
            for i in range(SUB * LANES):
                block[32 * LANES + i] = block[i] * block[i]
                block[16 * LANES + i] = block[32 * LANES + i] * block[i]
            largest = max(largest, encode_reference(block, kind, d, c, stored))
        for group in range(count):
            scales[start + group] = d[group]
        if kind[0] == 32:
            _pack_q6_k(stored, c, packed)
        else:
            _pack_q3_k(stored, c, packed)
        for group in range(count):
            for byte in range(out.shape[1] - 2):
                out[start + group, byte] = packed[byte * GROUP + group]
    return largest


@compiled
def _spread(blocks, weights, start, count, block):
    """Fills the rows of `block`; a group that is not full keeps older numbers, which nobody reads."""
    for sub in range(SUB):
        for group in range(count):
            for i in range(SUB):
                block[(i * SUB + sub) * GROUP + group] = blocks[start + group, sub * SUB + i]
    if start == 0 or len(weights) > 1:
        for sub in range(SUB):
            for group in range(GROUP):
                for i in range(SUB):
                    block[32 * LANES + (i * SUB + sub) * GROUP + group] = weights[(start + group) % len(weights), sub * SUB + i]
    for i in range(SUB * LANES):
        block[16 * LANES + i] = block[i] * block[32 * LANES + i]


@compiled
def _pack_q6_k(stored, c, packed):
    for line in range(64):                                                     # h, p, i
        h, p, i = line // 32, line // 16 % 2, line % 16
        first = i * LANES + (h * 8 + p) * GROUP
        for group in range(GROUP):
            at = first + group
            one, two = stored[at], stored[at + 2 * GROUP]
            three, four = stored[at + 4 * GROUP], stored[at + 6 * GROUP]
            packed[(h * 64 + line % 32) * GROUP + group] = uint8(one & 15) | uint8(three << 4)
            packed[(h * 64 + 32 + line % 32) * GROUP + group] = uint8(two & 15) | uint8(four << 4)
            low, high = uint8(one >> 4) | uint8(two >> 4 << 2), uint8(three >> 4 << 4) | uint8(four >> 4 << 6)
            packed[(128 + line) * GROUP + group] = low | high
    for lane in range(LANES):
        packed[192 * GROUP + lane] = uint8(numpy.int32(c[lane]))


@compiled
def _pack_q3_k(stored, c, packed):
    for line in range(32):                                                     # p, i
        p, i = line // 16, line % 16
        packed[line * GROUP:(line + 1) * GROUP] = 0
        for h in range(2):
            first = i * LANES + (h * 8 + p) * GROUP
            for group in range(GROUP):
                at = first + group
                one, two = stored[at], stored[at + 2 * GROUP]
                three, four = stored[at + 4 * GROUP], stored[at + 6 * GROUP]
                low, high = uint8(one & 3) | uint8((two & 3) << 2), uint8((three & 3) << 4) | uint8((four & 3) << 6)
                packed[(32 + h * 32 + line) * GROUP + group] = low | high
                low, high = uint8(one >> 2) | uint8(two >> 2 << 1), uint8(three >> 2 << 2) | uint8(four >> 2 << 3)
                packed[line * GROUP + group] |= uint8((low | high) << (4 * h))
    for j in range(4):
        for group in range(GROUP):
            at = j * GROUP + group
            one, two = numpy.int32(c[at]) + 32, numpy.int32(c[at + 4 * GROUP]) + 32
            three, four = numpy.int32(c[at + 8 * GROUP]) + 32, numpy.int32(c[at + 12 * GROUP]) + 32
            packed[96 * GROUP + at] = (one & 15) | ((three & 15) << 4)
            packed[100 * GROUP + at] = (two & 15) | ((four & 15) << 4)
            packed[104 * GROUP + at] = (one >> 4) | (two >> 4 << 2) | (three >> 4 << 4) | (four >> 4 << 6)
