"""Where the bits of a Q6_K and a Q3_K super-block lie (ggml-common.h, `block_q6_K`, `block_q3_K`), packed and unpacked.

Element h*128 + k*32 + p*16 + i of a super-block (h, p in 0..1, k in 0..3, i in 0..15) lies in sub-block h*8 + k*2 + p. Of four
elements that differ in k alone, the bits share bytes; with q = code + 32 (Q6_K) or + 4 (Q3_K), l = p*16 + i:
    Q6_K   210 bytes: 128 of low nibbles, h*64 + l: q(k=0) | q(k=2)<<4, h*64 + 32 + l: k = 1 and 3; 64 of the bits 4, 5,
           h*32 + l: those of k at 2k; 16 int8 scales; d
    Q3_K   110 bytes: 32 of bit 2, l: that of h, k at 4h + k; 64 of the bits 0, 1, h*32 + l: those of k at 2k;
           12 of 6-bit scales (+ 32): j < 8: low nibbles of j and j + 8; 8 + j, j < 4: upper bits of j + 4t at 2t; d
d is a float16; a weight is (d * scale) * code, in float32.
"""
from typing import NamedTuple

import torch

SUPER, SUB = 256, 16                               # ggml-common.h: QK_K, and the elements under one scale


class Kind(NamedTuple):
    """What sets the two types apart. Codes lie in -levels .. levels - 1, scales in -steps .. steps - 1."""

    levels: int
    steps: int


KINDS = {"Q6_K": Kind(32, 128), "Q3_K": Kind(4, 32)}


def spread(rows: torch.Tensor) -> torch.Tensor:
    """(rows, columns) as (16, 16, super-blocks), contiguous: element i of sub-block j of every super-block in [i, j]."""
    return rows.reshape(-1, SUB, SUB).permute(2, 1, 0).contiguous()


def _joined(*parts: torch.Tensor) -> torch.Tensor:
    """Bytes side by side, (super-blocks, bytes)."""
    return torch.cat([part.view(torch.uint8) for part in parts], dim=1)


def _shifted(bits: torch.Tensor, dims: int, step: int) -> torch.Tensor:
    """Dim `dims` of a few values made one byte: value t at bit t * step."""
    values = bits.unbind(dims)
    byte = values[0].clone()
    for place, value in enumerate(values[1:], 1):
        byte |= value << (step * place)
    return byte


def pack_q6_k(codes: torch.Tensor, scales: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """codes: (16, 16, n) uint8, 0..63, as `spread`; scales: (16, n), whole; d: (n,) float16. Returns (n, 210) uint8."""
    split = codes.view(SUB, 2, 4, 2, -1)                                       # i, h, k, p, n
    low = (split[:, :, :2] & 15) | (split[:, :, 2:] << 4)
    high = _shifted(split >> 4, 2, 2)
    return _joined(low.permute(4, 1, 2, 3, 0).reshape(-1, 128), high.permute(3, 1, 2, 0).reshape(-1, 64),
                   scales.to(torch.int8).t().contiguous(), d[:, None])


def pack_q3_k(codes: torch.Tensor, scales: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """codes: (16, 16, n) uint8, 0..7, as `spread`; scales: (16, n), whole; d: (n,) float16. Returns (n, 110) uint8."""
    split = codes.view(SUB, 2, 4, 2, -1)                                       # i, h, k, p, n
    high = _shifted((codes >> 2).view(SUB, 8, 2, -1), 1, 1)
    low = _shifted(split & 3, 2, 2)
    six = (scales + 32).to(torch.uint8)
    nibbles, tops = _shifted((six & 15).view(2, 8, -1), 0, 4), _shifted((six >> 4).view(4, 4, -1), 0, 2)
    return _joined(high.permute(2, 1, 0).reshape(-1, 32), low.permute(3, 1, 2, 0).reshape(-1, 64),
                   torch.cat((nibbles, tops)).t().contiguous(), d[:, None])


def _shifts(byte: torch.Tensor, *places: int) -> torch.Tensor:
    """(n, h, l) bytes as (n, h, len(places), l), each shifted right."""
    return byte[:, :, None] >> torch.tensor(places, dtype=torch.uint8, device=byte.device)[:, None]


def _weights(codes: torch.Tensor, scales: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    """codes: (n, ...) in the elements' own order; scales: (n, 16); d: (n, 1) float16."""
    return ((d.float() * scales.float())[:, :, None] * codes.reshape(-1, SUB, SUB).float()).reshape(-1, SUPER)


def unpack_q6_k(blocks: torch.Tensor) -> torch.Tensor:
    """blocks: (n, 210) uint8. Returns (n, 256) float32."""
    low, high, scales, d = blocks.split((128, 64, 16, 2), dim=1)
    low = (_shifts(low.reshape(-1, 2, 64), 0, 4) & 15).view(-1, 2, 4, 32)
    high = _shifts(high.reshape(-1, 2, 32), 0, 2, 4, 6) & 3
    codes = (low | (high << 4)).to(torch.int8) - 32
    return _weights(codes, scales.contiguous().view(torch.int8), d.contiguous().view(torch.float16))


def unpack_q3_k(blocks: torch.Tensor) -> torch.Tensor:
    """blocks: (n, 110) uint8. Returns (n, 256) float32."""
    high, low, packed, d = blocks.split((32, 64, 12, 2), dim=1)
    high = (_shifts(high.reshape(-1, 1, 32), *range(8)) & 1).view(-1, 2, 4, 32)
    low = _shifts(low.reshape(-1, 2, 32), 0, 2, 4, 6) & 3
    codes = (low | (high << 2)).to(torch.int8) - 4
    nibbles = (_shifts(packed[:, None, :8], 0, 4) & 15).reshape(-1, SUB)
    tops = (_shifts(packed[:, None, 8:], 0, 2, 4, 6) & 3).reshape(-1, SUB)
    scales = (nibbles | (tops << 4)).to(torch.int8) - 32
    return _weights(codes, scales, d.contiguous().view(torch.float16))
