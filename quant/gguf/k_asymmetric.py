"""Q4_K, Q5_K and Q2_K: 256 weights in sub-blocks with a scale and a minimum each, whose codes share two float16.

    x = (d S) l - (dmin M)      l: the code of the weight; S, M: the codes of its sub-block; d, dmin: float16 of the super-block

Layout of a super-block (ggml-common.h, `block_q4_K`, `block_q5_K`, `block_q2_K`; sub-blocks of 32, 32 and 16):
    Q4_K  144 bytes: d, dmin, scales[12], qs[128]            l of 4 bits, S and M of 6
    Q5_K  176 bytes: d, dmin, scales[12], qh[32], qs[128]    l of 5 bits, S and M of 6
    Q2_K   84 bytes: scales[16], qs[64], d, dmin             l of 2 bits, S and M of 4
qs of Q4_K and Q5_K: byte i of the k-th 32 holds the low 4 bits of weight i of sub-blocks 2 k (low nibble) and 2 k + 1; bit j of
qh[i] is the fifth bit of weight i of sub-block j. scales: bytes 0..3 are S of sub-blocks 0..3, bytes 4..7 their M, byte 8 + j the
low 4 bits of S and of M of sub-block 4 + j, whose 2 high bits are those of bytes j and 4 + j. Q2_K: byte j of scales is S | M << 4;
byte i of each 32 of qs holds, from the low bits, weights i, i + 32, i + 64 and i + 96 of its half of the super-block.
"""
from functools import partial

import torch

from . import k_asymmetric_reference
from .k_asymmetric_forms import BEST, FORMS, MAX, Form
from .k_asymmetric_search import search
from .k_asymmetric_sums import codes

BLOCK = 256
HIGH = 0x30                                        # bits 4 and 5 of a 6-bit code
LEAST = 2.0 ** -24                                 # of importances, the largest 1: float32 hides it beside the others


def encode(name: str, band: torch.Tensor, weight: torch.Tensor | None, setting: str) -> torch.Tensor:
    """Rows of super-blocks: ENCODERS of families.py."""
    form = FORMS[name]
    x = turned(band, form)
    if setting == "reference":
        d, scales, minima, levels = k_asymmetric_reference.search(x, name)
    else:
        share = None if weight is None else turned(floored(weight).expand_as(band), form)
        stored = search(x, share, form, (MAX if setting == "max" else BEST)[name])
        levels = codes(x, stored.line(), form.top)
        d, scales, minima = torch.stack((stored.d, stored.dmin), 1), stored.scales, stored.minima
    return packed(name, d.to(torch.float16), *(part.to(torch.uint8) for part in (scales, minima, levels))).view(len(band), -1)


def packed(name: str, d: torch.Tensor, *found: torch.Tensor) -> torch.Tensor:
    """(blocks, bytes) uint8. d: (blocks, 2) float16, d and dmin; then, uint8, S, M (count, blocks) and l (size, count, blocks)."""
    return PACK[name](d.view(torch.uint8), *found)


def floored(weight: torch.Tensor) -> torch.Tensor:
    """Importances of columns, none so small that a sub-block of them has no sums: where all are 0, all weights count alike."""
    return weight.clamp(min=LEAST)


def turned(band: torch.Tensor, form: Form) -> torch.Tensor:
    """(rows, columns) as (size, count, super-blocks), contiguous."""
    return band.reshape(-1, form.count, form.size).permute(2, 1, 0).contiguous()


def pack_q4(d: torch.Tensor, scales: torch.Tensor, minima: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """(blocks, 144). d: (blocks, 4), d and dmin; scales, minima: (8, blocks); levels: (32, 8, blocks); all uint8."""
    return torch.cat((d, pack_sixes(scales, minima), nibbles(levels)), 1)


def pack_q5(d: torch.Tensor, scales: torch.Tensor, minima: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """(blocks, 176). As `pack_q4`."""
    high = levels[:, 0] >> 4
    for sub_block in range(1, 8):
        high |= levels[:, sub_block] >> 4 << sub_block
    return torch.cat((d, pack_sixes(scales, minima), high.t(), nibbles(levels & 15)), 1)


def pack_q2(d: torch.Tensor, scales: torch.Tensor, minima: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """(blocks, 84). As `pack_q4`; scales, minima: (16, blocks), levels: (16, 16, blocks)."""
    fours = levels.unflatten(1, (2, 4, 2)).unbind(2)      # weight, half, which of the four, which sub-block of its 32
    packed = fours[0] | fours[1] << 2 | fours[2] << 4 | fours[3] << 6
    return torch.cat(((scales | minima << 4).t(), packed.permute(3, 1, 2, 0).reshape(-1, 64), d), 1)


def pack_sixes(scales: torch.Tensor, minima: torch.Tensor) -> torch.Tensor:
    """(blocks, 12) of 6-bit codes (8, blocks)."""
    low, high = (torch.cat((scales[part], minima[part])) for part in (slice(4), slice(4, 8)))
    return torch.cat((low | high >> 4 << 6, high[:4] & 15 | (high[4:] & 15) << 4)).t()


def nibbles(levels: torch.Tensor) -> torch.Tensor:
    """(blocks, 128) of 4-bit codes (32, 8, blocks)."""
    return (levels[:, 0::2] | levels[:, 1::2] << 4).permute(2, 1, 0).reshape(-1, 128)


def decode(name: str, stored: torch.Tensor) -> torch.Tensor:
    """(rows, columns) float32 of (rows, bytes of a row) uint8, by the float32 operations of gguf-py."""
    d, scales, minima, levels = UNPACK[name](stored.reshape(-1, BYTES[name]))
    d, dmin = d.contiguous().view(torch.float16).float().split(1, dim=1)
    back = levels.float().mul_((d * scales.float()).unsqueeze(2)).sub_((dmin * minima.float()).unsqueeze(2))
    return back.view(len(stored), -1)


def unpack_q4(blocks: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """d and dmin (blocks, 4), S and M (blocks, 8), l (blocks, 8, 32), all uint8, of (blocks, 144)."""
    return blocks[:, :4], *sixes(blocks[:, 4:16]), halves(blocks[:, 16:])


def unpack_q5(blocks: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """As `unpack_q4`, of (blocks, 176)."""
    shifts = torch.arange(8, dtype=torch.uint8, device=blocks.device).view(1, 8, 1)
    high = blocks[:, 16:48].unsqueeze(1) >> shifts & 1
    return blocks[:, :4], *sixes(blocks[:, 4:16]), halves(blocks[:, 48:]) | high << 4


def unpack_q2(blocks: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """As `unpack_q4`: S and M (blocks, 16), l (blocks, 16, 16), of (blocks, 84)."""
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=blocks.device).view(1, 1, 4, 1)
    levels = blocks[:, 16:80].reshape(-1, 2, 1, 32) >> shifts & 3
    return blocks[:, 80:], blocks[:, :16] & 15, blocks[:, :16] >> 4, levels.view(-1, 16, 16)


def sixes(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """S and M, (blocks, 8), of (blocks, 12)."""
    scales, minima, both = packed.split(4, dim=1)
    return torch.cat((scales & 63, both & 15 | scales >> 2 & HIGH), 1), torch.cat((minima & 63, both >> 4 | minima >> 2 & HIGH), 1)


def halves(packed: torch.Tensor) -> torch.Tensor:
    """4-bit codes (blocks, 8, 32) of (blocks, 128)."""
    pairs = packed.reshape(-1, 4, 32)
    return torch.stack((pairs & 15, pairs >> 4), 2).view(-1, 8, 32)


BYTES = {"Q4_K": 144, "Q5_K": 176, "Q2_K": 84}
PACK = {"Q4_K": pack_q4, "Q5_K": pack_q5, "Q2_K": pack_q2}
UNPACK = {"Q4_K": unpack_q4, "Q5_K": unpack_q5, "Q2_K": unpack_q2}
ENCODERS = {name: partial(encode, name) for name in FORMS}
DECODERS = {name: partial(decode, name) for name in FORMS}
