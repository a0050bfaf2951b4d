"""The bytes of IQ4_NL and IQ4_XS: 16 uneven values, 32 weights to a scale.

    IQ4_NL    x^ = d * value[code]                      per 32: d float16, then 16 bytes of codes
    IQ4_XS    x^ = (d * (scale - 32)) * value[code]     per 256: d float16, scales_h uint16, scales_l 4 bytes, 128 bytes of codes

(ggml-common.h, `block_iq4_nl`, `block_iq4_xs`.) Codes: element j of 32 in the low nibble of byte j, element 16 + j in the high one.
The low 4 bits of the scale of block i are a nibble of scales_l, even blocks low; its upper 2 are bits 2i and 2i + 1 of scales_h.
Which values and scales: iq4_grid.py, iq4_scales.py.
"""
import torch

from .block_search import reciprocal
from .iq4_grid import VALUES, nearest_code
from .iq4_scales import BLOCKS, SIDE, least_scale, least_super, reference_scale, reference_super
from .lanes import half, lanes
from .plain_blocks import SIZE, apart, nibbles, real

NL_BYTES, XS_BYTES = 18, 136


def encode_nl(band: torch.Tensor, weight: torch.Tensor | None, setting: str) -> torch.Tensor:
    """IQ4_NL of rows.

    band: (rows, columns) float32, finite, columns a multiple of 32; weight: (columns,) float32 in [0, 1], how much a column's
    squared error counts, or None; setting: best, max, or reference, which takes no weight. Returns (rows, columns / 32 * 18) uint8.
    Raises ValueError where float16 does not hold a scale.
    """
    blocks, scale, _ = block_scales(band, weight, setting)
    stored = half(scale)                           # before codes are made of it: it may be inf
    used = scale if setting == "reference" else stored.float()
    packed = nibbles(nearest_code(blocks * reciprocal(used)))
    return torch.cat([stored.unsqueeze(1).view(torch.uint8), packed], 1).view(len(band), -1)


def encode_xs(band: torch.Tensor, weight: torch.Tensor | None, setting: str) -> torch.Tensor:
    """IQ4_XS of rows, as encode_nl, but columns a multiple of 256; 136 bytes each."""
    blocks, scale, power = block_scales(band, weight, setting)
    d, codes = reference_super(scale) if setting == "reference" else least_super(scale, power, setting)
    stored = half(d).unsqueeze(1).view(torch.uint8)
    used = (d * codes).t().reshape(-1)
    packed = nibbles(nearest_code(blocks * reciprocal(used))).reshape(-1, SIZE // 2 * BLOCKS)
    return torch.cat([stored, pack_scales(codes), packed], 1).view(len(band), -1)


def block_scales(band: torch.Tensor, weight: torch.Tensor | None, setting: str) -> tuple[torch.Tensor, ...]:
    """Blocks, (32, n), their scales, and the B of each, which the reference does not know: (n,)."""
    blocks = lanes(band, SIZE)
    if setting == "reference":
        return blocks, reference_scale(blocks), blocks[:0]
    return blocks, *least_scale(blocks, None if weight is None else lanes(weight.expand_as(band), SIZE), setting)


def pack_scales(codes: torch.Tensor) -> torch.Tensor:
    """(n, 6) bytes: scales_h, scales_l. codes: (8, n) float32, -32..31."""
    codes = (codes + SIDE).to(torch.uint8)
    low, high = codes & 15, codes >> 4
    upper = [high[i] | high[i + 1] << 2 | high[i + 2] << 4 | high[i + 3] << 6 for i in (0, 4)]
    return torch.cat([torch.stack(upper), low[0::2] | low[1::2] << 4]).t()


def decode_nl(stored: torch.Tensor) -> torch.Tensor:
    """(rows, columns) float32. stored: (rows, bytes of a row) uint8."""
    blocks = stored.reshape(-1, NL_BYTES)
    return (real(blocks[:, :2]) * values(blocks[:, 2:])).view(len(stored), -1)


def decode_xs(stored: torch.Tensor) -> torch.Tensor:
    """(rows, columns) float32. stored: (rows, bytes of a row) uint8."""
    blocks = stored.reshape(-1, XS_BYTES)
    shift = torch.arange(0, 8, 2, dtype=torch.uint8, device=stored.device)
    high = (blocks[:, 2:4].unsqueeze(2) >> shift & 3).view(-1, BLOCKS)
    low = torch.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], 2).view(-1, BLOCKS)
    scale = real(blocks[:, :2]) * ((low | high << 4).view(torch.int8) - SIDE)
    return (scale.view(-1, 1) * values(blocks[:, 8:].reshape(-1, SIZE // 2))).view(len(stored), -1)


def values(packed: torch.Tensor) -> torch.Tensor:
    """(n, 32) float32. packed: (n, 16) bytes of codes."""
    table = torch.tensor(VALUES, dtype=torch.float32, device=packed.device)
    return table.index_select(0, apart(packed).view(-1).int()).view(-1, SIZE)


ENCODERS = {"IQ4_NL": encode_nl, "IQ4_XS": encode_xs}
DECODERS = {"IQ4_NL": decode_nl, "IQ4_XS": decode_xs}
