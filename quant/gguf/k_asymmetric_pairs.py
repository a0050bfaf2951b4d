"""Super-blocks of the asymmetric types: d and dmin, and the codes S, M for them (step 2 of k_asymmetric_search.py).

What belongs to a super-block is (blocks,), or (tries, blocks) beside (count, 1, blocks) of its sub-blocks.
"""
from typing import NamedTuple

import torch

from .k_asymmetric_sums import SINGULAR, Known, Line, Sums, excess
from .lanes import HALF_MAX, half, tree


class Pair(NamedTuple):
    """d and dmin, float32 of a float16; excess over the super-block with the codes that they are for."""

    d: torch.Tensor
    dmin: torch.Tensor
    excess: torch.Tensor


class Stored(NamedTuple):
    """d and dmin, float32 of a float16; S and M, whole float32; excess over the super-block."""

    d: torch.Tensor
    dmin: torch.Tensor
    scales: torch.Tensor
    minima: torch.Tensor
    excess: torch.Tensor

    def line(self) -> Line:
        """s and m as a reader multiplies them."""
        return Line(self.d * self.scales, self.dmin * self.minima)


def first(block: Known, sums: Sums, line: Line, starts: tuple[tuple[float, float], ...], code_top: int) -> Stored:
    """Step 2; starts: factors on the first d and dmin. Raises ValueError where float16 does not hold these."""
    largest = [part.amax(0) * (1.0 / code_top) for part in line]
    half(torch.stack(largest))
    d, dmin = (torch.stack([floats(part * on) for on in factors])
               for part, factors in zip(largest, zip(*starts, strict=True), strict=True))
    wide = Known(block.x, None, block.total.unsqueeze(1), block.sum_x.unsqueeze(1))
    wide_sums, wide_line = Sums(*(part.unsqueeze(1) for part in sums)), Line(*(part.unsqueeze(1) for part in line))
    tries = joint(wide, wide_sums, coded(wide, wide_sums, wide_line, Pair(d, dmin, d), code_top))
    best, *others = (Pair(*fields) for fields in zip(*tries, strict=True))
    for other in others:
        best = better(other, best)
    return coded(block, sums, line, best, code_top)


def floats(scale: torch.Tensor) -> torch.Tensor:
    """float32 of the nearest float16, within 0..65504; 0 for -0 and what is no number."""
    return torch.where(scale > 0, scale, 0.0).clamp_(max=HALF_MAX).to(torch.float16).float()


def nearest_low(block: Known, sums: Sums, scale: torch.Tensor, dmin: torch.Tensor) -> torch.Tensor:
    """The m of least error for s, in units of dmin."""
    return torch.where(dmin > 0, (scale * sums.l1 - block.sum_x) / (block.total * dmin), 0.0)


def coded(block: Known, sums: Sums, line: Line, pair: Pair, code_top: int) -> Stored:
    """S and M for d and dmin."""
    d, dmin, _ = pair
    down = torch.where(d > 0, line.scale / d, 0.0).floor_()
    tries = []
    for scales in (down.clamp(0, code_top), (down + 1).clamp_(0, code_top)):
        scale = d * scales
        minima = nearest_low(block, sums, scale, dmin).round_().clamp_(0, code_top)
        tries.append((scales, minima, excess(block, sums, Line(scale, dmin * minima))))
    up = tries[1][2] < tries[0][2]
    scales, minima, error = (torch.where(up, higher, lower) for lower, higher in zip(*tries, strict=True))
    return Stored(d, dmin, scales, minima, tree(error))


def joint(block: Known, sums: Sums, stored: Stored) -> Pair:
    """d and dmin of least error for the codes; the old ones where there is no such pair."""
    scales, minima = stored.scales, stored.minima
    a, b, c = tree(scales * scales * sums.l2), tree(scales * minima * sums.l1), tree(minima * minima * block.total)
    p, q = tree(scales * sums.lx), tree(minima * block.sum_x)
    product = a * c
    spread = product - b * b
    sound = spread > product * SINGULAR
    d = torch.where(sound, floats((p * c - q * b) / spread), stored.d)
    dmin = torch.where(sound, floats((p * b - q * a) / spread), stored.dmin)
    return Pair(d, dmin, ((d * a - 2 * p) - 2 * dmin * b) * d + (dmin * c + 2 * q) * dmin)


def better(new: Pair | Stored, old: Pair | Stored) -> Pair | Stored:
    """Of each super-block the one of lower excess, the old at a tie."""
    lower = new.excess < old.excess
    return type(new)(*(torch.where(lower, a, b) for a, b in zip(new, old, strict=True)))
