"""The bytes of Q8_0, Q4_0, Q5_0, Q4_1 and Q5_1: 32 weights share one scale, or a scale and a minimum.

    Q8_0, Q4_0, Q5_0    x^ = d * q              q in -128..127, -8..7, -16..15
    Q4_1, Q5_1          x^ = d * q + m          q in 0..15, 0..31

(ggml-common.h, `block_q8_0` and its neighbours.) A block is d, m where it has one (float16), of Q5 the fifth bits of all codes
(bit j of a little-endian uint32 is that of element j), then 16 bytes: element j in the low nibble of byte j, element 16 + j in the
high one; there negative codes are stored from 0 on. Q8_0 has 32 int8.

How scales are found: plain_blocks_scales.py. Q8_0's plain rule, d = amax / 127 and C's roundf, is also its `best`: everybody's
bytes, at twice the speed. `max` takes an eighth of the error off, and that is an eighth of half a percent.
"""
from functools import partial

import torch

from .lanes import half, lanes
from .plain_blocks_scales import finite_reciprocal, least_range, least_scale, plain_range, plain_scale

SIZE = 32                                          # QK8_0, QK4_0 ..., ggml-common.h
# Bits of a code, and float16 in front: d, or d and m.
LAYOUTS = {"Q8_0": (8, 1), "Q4_0": (4, 1), "Q5_0": (5, 1), "Q4_1": (4, 2), "Q5_1": (5, 2)}
CODE_BYTES = {4: 16, 5: 20, 8: 32}
SIZES = {name: 2 * fields + CODE_BYTES[bits] for name, (bits, fields) in LAYOUTS.items()}
SEARCH = "max"                                     # the setting that searches for Q8_0 too
BELOW_HALF = 0.49999997                            # the float32 below 0.5: 0.5 itself would round 0.49999997 up to 1


def encode(name: str, band: torch.Tensor, weight: torch.Tensor | None, setting: str) -> torch.Tensor:
    """Rows of blocks.

    band: (rows, columns) float32, finite, columns a multiple of 32; weight: (columns,) float32 in [0, 1], how much a column's
    squared error counts, or None; setting: best, max, or reference, which takes no weight. Returns (rows, bytes of a row) uint8.
    Raises ValueError where float16 does not hold a scale or a minimum.
    """
    if name == "Q8_0" and setting != SEARCH:
        return plain_q8_0(band)
    bits, fields = LAYOUTS[name]
    blocks = lanes(band, SIZE)
    if setting == "reference":
        scales, codes = (plain_scale if fields == 1 else plain_range)(blocks, bits)
    else:
        spread = None if weight is None else lanes(weight.expand_as(band), SIZE)
        scales, codes = (least_scale if fields == 1 else least_range)(blocks, spread, bits, setting)
    parts = [half(scale).unsqueeze(1).view(torch.uint8) for scale in scales]
    return torch.cat([*parts, *pack(codes.to(torch.uint8), bits)], 1).view(len(band), -1)


def plain_q8_0(band: torch.Tensor) -> torch.Tensor:
    """Q8_0 as ggml-quants.c makes it, `quantize_row_q8_0_ref`."""
    blocks = band.reshape(-1, SIZE)
    scale = blocks.abs().amax(1, keepdim=True) / band.new_full((), 127.0)     # a GPU multiplies by 1 / 127 where it gets a number
    scaled = blocks * finite_reciprocal(scale)
    codes = scaled.add_(torch.copysign(band.new_full((), BELOW_HALF), scaled)).to(torch.int8)
    return torch.cat([half(scale).view(torch.uint8), codes.view(torch.uint8)], 1).view(len(band), -1)


def pack(codes: torch.Tensor, bits: int) -> list[torch.Tensor]:
    """Bytes of every block, (n, k) each. codes: (32, n) uint8, from 0 on."""
    if bits == 8:
        return [(codes ^ 128).t()]
    return [fifth_bits(codes), nibbles(codes)] if bits == 5 else [nibbles(codes)]


def nibbles(codes: torch.Tensor) -> torch.Tensor:
    """(n, 16) bytes of the low four bits. codes: (32, n) uint8."""
    return ((codes[:16] & 15) | (codes[16:] << 4)).t()


def fifth_bits(codes: torch.Tensor) -> torch.Tensor:
    """(n, 4) bytes. codes: (32, n) uint8."""
    bits = (codes >> 4).view(4, 8, -1)
    packed = bits[:, 0]
    for place in range(1, 8):
        packed = packed | bits[:, place] << place
    return packed.t()


def decode(name: str, stored: torch.Tensor) -> torch.Tensor:
    """(rows, columns) float32. stored: (rows, bytes of a row) uint8."""
    bits, fields = LAYOUTS[name]
    blocks = stored.reshape(-1, SIZES[name])
    scales = real(blocks[:, :2 * fields])
    if bits == 8:
        codes = blocks[:, 2:].view(torch.int8)
    else:
        codes = apart(blocks[:, -16:])
        if bits == 5:
            fifth = blocks[:, -20:-16].unsqueeze(2) >> torch.arange(8, dtype=torch.uint8, device=stored.device) & 1
            codes |= fifth.view(-1, SIZE) << 4
        codes = codes.view(torch.int8) - (1 << bits - 1 if fields == 1 else 0)
    values = codes * scales[:, :1]
    return (values + scales[:, 1:] if fields == 2 else values).view(len(stored), -1)


def apart(packed: torch.Tensor) -> torch.Tensor:
    """(n, 32) uint8 codes. packed: (n, 16), as `nibbles` packs them."""
    return torch.cat([packed & 15, packed >> 4], 1)


def real(stored: torch.Tensor) -> torch.Tensor:
    """(n, k) float32. stored: (n, 2 k) bytes of float16."""
    return stored.contiguous().view(torch.float16).float()


ENCODERS = {name: partial(encode, name) for name in LAYOUTS}
DECODERS = {name: partial(decode, name) for name in LAYOUTS}
