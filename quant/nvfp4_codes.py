"""E2M1 codes of NVFP4: blocks of 16 weights to 8 bytes, tile by tile, so that every pass stays in the L2 cache.

    code = RNE_e2m1(weight / total)         magnitudes 0 .5 1 1.5 2 3 4 6 = codes 0..7, bit 3 = sign, also of a negative zero

(OCP Microscaling specification, FP4; comfy-kitchen `_f32_to_floatx_unpacked`.) With a = |weight / total| the magnitude is

    code = 2 min(a, 2) + clamp(a, 2, 4) - 2 + clamp(a, 4, 6) / 2 - 2

added one after the other to a float32 whose last bit is worth 1, so the adder itself rounds to nearest, ties to even. In every
segment of the grid only one of the three terms is broken, and the sum before it is even: each weight is rounded once, and a tie
goes to the even code. (`min(2a, a + 2, a / 2 + 4)` rounds a + 2 first: 2.5 + 2**-22 would become the tie 2.5.) The code is then
read from the low bits, not converted.
"""
import torch

GRID = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)    # E2M1, OCP Microscaling specification
BLOCK = 16                                         # weights that share one scale, NVFP4
TILE, BUFFERS = 1 << 16, 4                          # weights, and float32 buffers of that size: 1 MB, as much as L2 often has
MAGNITUDE, SIGN = 0x7FFFFFFF, 8                    # of a float32's bits; of a code
# Tensors, because an integer from Python costs a conversion in every call.
ABSOLUTE, TO_SIGN, ONLY_SIGN = torch.tensor([MAGNITUDE, 28, SIGN], dtype=torch.int32).unbind()
# 2**23: the last bit is worth 1. The terms overshoot by 4, the other 252 leave the code alone in the low byte, and the sum even.
COUNTER = 2.0 ** 23 + 252


def tiles(blocks: torch.Tensor) -> list[slice]:
    """Runs of rows worked on at once: a cache's worth on the CPU, everything elsewhere. blocks: (rows, blocks of a row, 16)."""
    rows = len(blocks)
    step = max(1, TILE // blocks[0].numel()) if blocks.device.type == "cpu" else rows
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def workspace(blocks: torch.Tensor, scratch: torch.Tensor | None) -> torch.Tensor:
    """(BUFFERS, tile's size) float32, a part of `scratch` where that is large enough."""
    size = blocks[tiles(blocks)[0]].numel()
    if scratch is None or scratch.numel() < BUFFERS * size or scratch.storage_offset() % 2:     # pairs are read as one int64
        return torch.empty(BUFFERS, size, dtype=torch.float32, device=blocks.device)
    return scratch.view(-1)[:BUFFERS * size].view(BUFFERS, size)


def block_amax(blocks: torch.Tensor, work: torch.Tensor) -> torch.Tensor:
    """Largest magnitude of each block. blocks: (rows, blocks of a row, 16) float32 without NaN. Returns the first two dimensions,
    float32."""
    amax = torch.empty(blocks.shape[:2], dtype=torch.float32, device=blocks.device)
    for tile in tiles(blocks):                     # positive floats are ordered as their bits, and integers reduce faster
        bits = blocks[tile].view(torch.int32)
        positive = torch.bitwise_and(bits, ABSOLUTE, out=work[0].view(torch.int32)[:bits.numel()].view_as(bits))
        torch.amax(positive, 2, out=amax[tile].view(torch.int32))
    return amax


def encode(blocks: torch.Tensor, total: torch.Tensor, work: torch.Tensor) -> torch.Tensor:
    """Bytes of all blocks, rounded to nearest, the even column in the high nibble.

    blocks: (rows, blocks of a row, 16) float32, not modified; total: (rows, blocks of a row) float32, the blocks' scales, not zero;
    work: of `workspace`. Returns (rows, blocks of a row * 8) uint8.
    """
    packed = torch.empty(len(blocks), blocks[0].numel() // 2, dtype=torch.uint8, device=blocks.device)
    counter = torch.tensor(COUNTER)
    for tile in tiles(blocks):
        part = blocks[tile]
        scaled, term, code = work[:3, :part.numel()]
        torch.div(part, total[tile].unsqueeze(2), out=scaled.view_as(part))
        sign = torch.bitwise_right_shift(scaled.view(torch.int32), TO_SIGN, out=term.view(torch.int32)).bitwise_and_(ONLY_SIGN)
        scaled.view(torch.int32).bitwise_and_(ABSOLUTE)
        torch.add(counter, torch.clamp(scaled, max=2.0, out=code), alpha=2, out=code)
        code.view(torch.int32).add_(sign)          # it lies in `term`, which is written again below
        code.add_(torch.clamp(scaled, 2.0, 4.0, out=term))
        code.add_(torch.clamp(scaled, 4.0, 6.0, out=term), alpha=0.5)
        pairs = code.view(torch.int64)             # little endian: the even column is the low half
        odd = torch.bitwise_right_shift(pairs, 32, out=term.view(torch.int64))
        packed[tile].view(-1).copy_(odd.add_(pairs, alpha=16))
    return packed


def encode_by_chance(blocks: torch.Tensor, total: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """As `encode`, but up with the probability of the way already gone to the upper neighbour: unbiased within the grid.

    noise: uniform [0, 1) float32 of the blocks' shape. A weight on the grid stays; magnitudes over 6 become 6.
    """
    scaled = blocks / total.unsqueeze(2)
    size = scaled.abs().clamp_(max=GRID[-1])
    level = (size >= 2).to(torch.int32) + (size >= 4)                # the grid's step is 0.5, 1, 2
    steps = torch.ldexp(size, 1 - level)           # exact: a power of two
    lower = steps.floor()
    code = lower.to(torch.int32) + (steps - lower > noise) + 2 * level
    code += torch.signbit(scaled) * SIGN
    return (code[..., 0::2] * 16 + code[..., 1::2]).to(torch.uint8).view(len(blocks), -1)


def decode(packed: torch.Tensor) -> torch.Tensor:
    """Grid values, signed. packed: (rows, columns / 2) uint8. Returns (rows, columns) float32."""
    grid = torch.tensor([*GRID, *(-size for size in GRID)], dtype=torch.float32, device=packed.device)
    pairs = torch.stack([grid.repeat_interleave(16), grid.repeat(16)], 1)           # of every byte: high nibble, low nibble
    return pairs.index_select(0, packed.reshape(-1).int()).view(len(packed), -1)
