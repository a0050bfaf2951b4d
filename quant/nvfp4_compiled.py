"""The three passes of NVFP4 compiled with numba: one call for a band, without the GIL, the bytes of the torch passes.

Imported only where numba is installed (`backend.py`). `fastmath` stays off: no product and sum are contracted into one
rounding and no sum is reordered, so every float32 operation is the one that `nvfp4_codes.py` and `nvfp4_search.py` make; their
docstrings hold the formulas. LANES blocks are worked on at once, one below the other, so that a loop over them becomes vector
instructions: over the 16 weights of one block it does not, and is 25 times slower.
"""
import numba
import numpy
import torch
from numpy import float32, int32

from .kernel_cache import kept
from .nvfp4_codes import BLOCK, COUNTER, MAGNITUDE, SIGN
from .nvfp4_search import INDEX, STEP, value

LANES = 64                                         # blocks: their weights and errors are 8 KB, a fraction of L1
compiled = kept(numba.njit(nogil=True, fastmath=False, error_model="numpy"))


def block_amax(blocks: torch.Tensor) -> torch.Tensor:
    """As `nvfp4_codes.block_amax`."""
    amax = torch.empty(blocks.shape[:2], dtype=torch.float32)
    _block_amax(flat(blocks), amax.view(-1).numpy())
    return amax


def encode(blocks: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """As `nvfp4_codes.encode`."""
    packed = torch.empty(len(blocks), blocks[0].numel() // 2, dtype=torch.uint8)
    _encode(flat(blocks), total.view(-1).numpy(), packed.view(-1).numpy())
    return packed


def search(blocks: torch.Tensor, candidates: torch.Tensor, scale_2: torch.Tensor,
           importance: torch.Tensor | None = None) -> torch.Tensor:
    """As `nvfp4_search.search`."""
    scales = value(torch.arange(127, dtype=torch.uint8)).numpy()
    weight = numpy.empty((0, BLOCK), float32) if importance is None else importance.numpy()
    chosen = torch.empty(blocks.shape[:2], dtype=torch.uint8)
    _search(flat(blocks), candidates.view(len(candidates), -1).numpy(), float32(scale_2.item()) * scales, scales, weight,
            chosen.view(-1).numpy())
    return chosen


def flat(blocks: torch.Tensor) -> numpy.ndarray:
    """(n, 16) view for the kernels."""
    return blocks.reshape(-1, BLOCK).numpy()


@compiled
def _block_amax(blocks, amax):
    for block in range(len(blocks)):
        largest = float32(0)
        for j in range(BLOCK):
            largest = max(largest, abs(blocks[block, j]))
        amax[block] = largest


@compiled
def _encode(blocks, total, packed):
    scaled, code = numpy.empty(LANES * BLOCK, float32), numpy.empty(LANES * BLOCK, float32)
    nibbles = numpy.empty(LANES * BLOCK, numpy.uint8)
    scaled_bits, code_bits = scaled.view(int32), code.view(int32)
    for start in range(0, len(blocks), LANES):
        lanes = min(LANES, len(blocks) - start)
        for lane in range(lanes):
            for j in range(BLOCK):
                scaled[lane * BLOCK + j] = blocks[start + lane, j] / total[start + lane]
        for i in range(lanes * BLOCK):
            size = abs(scaled[i])
            term = float32(COUNTER) + float32(2) * min(size, float32(2))
            term = term + min(max(size, float32(2)), float32(4))
            code[i] = term + float32(0.5) * min(max(size, float32(4)), float32(6))
        for i in range(lanes * BLOCK):
            nibbles[i] = (code_bits[i] & 7) | ((scaled_bits[i] >> 28) & SIGN)
        first = start * BLOCK // 2
        for i in range(lanes * BLOCK // 2):
            packed[first + i] = (nibbles[2 * i] << 4) | nibbles[2 * i + 1]


@compiled
def _search(blocks, candidates, totals, scales, weight, chosen):
    sizes, weights = numpy.zeros((BLOCK, LANES), float32), numpy.ones((BLOCK, LANES), float32)
    errors, inverse = numpy.empty((BLOCK, LANES), float32), numpy.zeros(LANES, float32)
    squares, keys = numpy.zeros(LANES, float32), numpy.empty(LANES, int32)
    for start in range(0, len(blocks), LANES):
        lanes = min(LANES, len(blocks) - start)
        for lane in range(lanes):
            for j in range(BLOCK):
                sizes[j, lane] = abs(blocks[start + lane, j])
        if len(weight):
            for lane in range(lanes):
                for j in range(BLOCK):
                    weights[j, lane] = weight[(start + lane) % len(weight), j]
        keys[:] = MAGNITUDE
        for index in range(len(candidates)):
            for lane in range(lanes):
                byte = candidates[index, start + lane]
                inverse[lane] = float32(1) / totals[byte]
                squares[lane] = scales[byte] * scales[byte]
            _square_errors(sizes, inverse, weights if len(weight) else weights[:0], errors)
            _keep_lowest(errors, squares, index, keys)
        for lane in range(lanes):
            chosen[start + lane] = candidates[keys[lane] & INDEX, start + lane]


@compiled
def _square_errors(sizes, inverse, weights, errors):
    for j in range(BLOCK):
        for lane in range(LANES):
            size = sizes[j, lane] * inverse[lane]
            step = float32(STEP) if size < float32(2) else (float32(2 * STEP) if size < float32(4) else float32(4 * STEP))
            near = (size + step) - step
            away = (near if near < float32(6) else float32(6)) - size
            errors[j, lane] = away * away
    for j in range(len(weights)):
        for lane in range(LANES):
            errors[j, lane] *= weights[j, lane]


@compiled
def _keep_lowest(errors, squares, index, keys):
    for j in range(BLOCK // 2):
        for lane in range(LANES):
            errors[j, lane] += errors[j + 8, lane]
    for j in range(BLOCK // 4):
        for lane in range(LANES):
            errors[j, lane] += errors[j + 4, lane]
    for lane in range(LANES):
        errors[0, lane] = ((errors[0, lane] + errors[2, lane]) + (errors[1, lane] + errors[3, lane])) * squares[lane]
    bits = errors.view(int32)
    for lane in range(LANES):
        keys[lane] = min(keys[lane], (bits[0, lane] & int32(~INDEX)) | int32(index))
