"""The choice of NVFP4's block scales: of a few neighbours of the rounded scale, the one with the lowest squared error.

A block scale is an E4M3 byte; bytes of positive E4M3 numbers are ordered, 8 to the octave. Round to nearest takes amax / 6, which
puts the largest weight on the 6; but 4 and 6 are the coarsest part of the grid. For each offset on the byte

    error = s**2 sum_j w_j (a_j - RNE_e2m1(a_j))**2          a = |weight| / (s * weight_scale_2), s = the candidate

and the lowest wins, in float32, the first at a tie; errors that differ by less than 2**-20 of themselves may count as a tie. Sums
of 16 are added in a fixed order, so the bytes do not depend on the machine.
{0, +5} is 4/6 (arXiv 2512.02010: +5 is about 3/2); all 126 bytes is ScaleSweep (arXiv 2606.07618).
"""
from itertools import pairwise

import torch

from .nvfp4_codes import ABSOLUTE, BLOCK, GRID, MAGNITUDE, tiles

# Each next offset is the one that lowers the error of Gaussian weights most.
BALANCED = (0, 5, -1, 4, 1)
BEST = (*BALANCED, 6, 3, -2)
LOWEST, HIGHEST = 1, 126                           # E4M3 bytes of 2**-9 and 448: positive and finite (OCP OFP8, table 1)
STEP = 1.5 * 2.0 ** 22                             # plus this times 2**e, the last bit is worth 2**e / 2: one bit of mantissa
INDEX = 7                                          # low bits of an error that name its candidate, at most 8
# Tensors, because an integer from Python costs a conversion in every call: exponent bits of a float32, ...
EXPONENT, RANKED, *INDICES = torch.tensor([0x7F800000, ~INDEX, *range(INDEX + 1)], dtype=torch.int32).unbind()


def value(byte: torch.Tensor) -> torch.Tensor:
    """float32 value of E4M3 bytes, uint8."""
    return byte.view(torch.float8_e4m3fn).float()


def neighbours(byte: torch.Tensor, offsets: tuple[int, ...]) -> torch.Tensor:
    """Bytes of all candidates. byte: (rows, blocks of a row) uint8. Returns (offsets, rows, blocks of a row) uint8, in 1..126."""
    shift = torch.tensor(offsets, dtype=torch.int16, device=byte.device).view(-1, 1, 1)
    return (byte.to(torch.int16) + shift).clamp_(LOWEST, HIGHEST).to(torch.uint8)


def search(blocks: torch.Tensor, candidates: torch.Tensor, scale_2: torch.Tensor, importance: torch.Tensor | None = None, *,
           work: torch.Tensor) -> torch.Tensor:
    """The candidate of lowest error, for every block.

    blocks: (rows, blocks of a row, 16) float32, not modified; candidates: (at most 8, rows, blocks of a row) uint8; scale_2: ()
    float32, so large that no product with a candidate is subnormal; importance: (blocks of a row, 16) float32 within 0..1, None: 1;
    work: of `workspace`. Returns (rows, blocks of a row) uint8.
    """
    scales = value(candidates)
    # Two copies beside each other, one for each weight of a pair.
    inverse = (scale_2 * scales).reciprocal_().unsqueeze(3).expand(*scales.shape, 2).reshape(len(scales), len(blocks), -1)
    squares = scales.square_()
    keys = torch.full(blocks.shape[:2], MAGNITUDE, dtype=torch.int32, device=blocks.device)
    weight = None if importance is None else pairs_first(importance.unsqueeze(0), torch.empty_like(importance)).unsqueeze(1)
    for tile in tiles(blocks):
        buffers = Buffers(work, blocks[tile].numel())
        pairs_first(blocks[tile], work[0]).view(torch.int32).bitwise_and_(ABSOLUTE)
        best = keys[tile].view(-1)
        for index, (scale, square) in enumerate(zip(inverse[:, tile].unbind(), squares[:, tile].unbind(), strict=True)):
            error = errors(buffers, scale.view(-1), weight).mul_(square.view(-1)).view(torch.int32)
            torch.minimum(best, error.bitwise_and_(RANKED).bitwise_or_(INDICES[index]), out=best)
    return candidates.gather(0, (keys & INDEX).long().unsqueeze(0)).squeeze(0)


class Buffers:
    """Views of the work space that `errors` needs, made once for a tile: slicing costs as much as a pass."""

    def __init__(self, work: torch.Tensor, count: int):
        self.magnitude, self.scaled, self.power, self.near = (buffer[:count].view(8, -1) for buffer in work)
        self.scaled_bits, self.power_bits = self.scaled.view(torch.int32), self.power.view(torch.int32)
        chain = [self.near.view(-1), work[1, :count // 2], work[2, :count // 4], work[1, :count // 8]]
        self.halves = [(full[:out.numel()], full[out.numel():], out) for full, out in pairwise(chain)]
        self.pair = chain[3][0::2], chain[3][1::2], work[2, :count // BLOCK]


def pairs_first(part: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Blocks turned so that sums over a block run along rows. part: (rows, blocks of a row, 16). Returns (8, 2 * blocks), in `out`:
    row i holds weights 2 i and 2 i + 1 of every block."""
    count = part.numel() // 2
    turned = out.view(-1)[:2 * count].view(torch.complex64).view(8, count // 8)        # a pair moves as one complex number
    turned.copy_(part.view(torch.complex64).view(-1, 8).t())
    return turned.view(torch.float32)


def errors(buffers: Buffers, inverse: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
    """sum_j w_j (a_j - RNE(a_j))**2 of each block of `buffers.magnitude`, in a buffer: added as j and j + 8, then j + 4, 2, 1.

    inverse: 1 / scale of every column of the magnitudes; weight: (8, 1, 2 * blocks of a row) or None.
    """
    scaled, power, near = buffers.scaled, buffers.power, buffers.near
    torch.mul(buffers.magnitude, inverse, out=scaled)
    torch.bitwise_and(buffers.scaled_bits, EXPONENT, out=buffers.power_bits)
    power.clamp_(1.0, 4.0)                         # 2**e of the grid's three steps, 0.5, 1, 2
    torch.add(scaled, power, alpha=STEP, out=near).sub_(power, alpha=STEP).clamp_(max=GRID[-1])
    near.sub_(scaled)
    torch.mul(near, near, out=near)
    if weight is not None:
        near.view(8, -1, weight.shape[2]).mul_(weight)
    for low, high, out in buffers.halves:
        torch.add(low, high, out=out)
    low, high, out = buffers.pair
    return torch.add(low, high, out=out)
