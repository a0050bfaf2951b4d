"""Sub-blocks of the asymmetric types: all that the squared error knows of the codes are three sums, and these are its formulas.

A sub-block is x ~ s l - m with whole codes l in 0..top and m >= 0. With w, how much a weight counts, over the sub-block:

    sums        L1 = sum w l, L2 = sum w l**2, LX = sum w l x         known: W = sum w, X = sum w x
    line        s = (W LX - X L1) / (W L2 - L1**2), m = (s L1 - X) / W; where m < 0: m = 0, s = LX / L2
    gain        (W LX - X L1)**2 / (W L2 - L1**2); at m = 0 W LX**2 / L2 - X**2: W times what the line takes off the variance
    excess      s**2 L2 - 2 s LX - 2 s m L1 + W m**2 + 2 m X: the squared error less sum w x**2, for any s and m

So only a step that changes l passes over the weights. Every operation is one float32 operation, sums are `lanes.tree`, and nothing
divides by a Python number, for which CUDA multiplies by the reciprocal: k_asymmetric_compiled.py writes the same bytes.
"""
from typing import NamedTuple

import torch

from .lanes import tree

SINGULAR = 2.0 ** -18                              # of W L2: less is rounding; one code 30 among 31 codes 31 leaves 2**-15
INFINITE = float("inf")


class Known(NamedTuple):
    """Of each sub-block: the weights, (size, count, blocks); how much each counts, or None: 1; W and X, (count, blocks)."""

    x: torch.Tensor
    weight: torch.Tensor | None
    total: torch.Tensor
    sum_x: torch.Tensor


class Line(NamedTuple):
    """s and m of sub-blocks."""

    scale: torch.Tensor
    low: torch.Tensor


class Sums(NamedTuple):
    """L1, L2 and LX of sub-blocks."""

    l1: torch.Tensor
    l2: torch.Tensor
    lx: torch.Tensor


def known(x: torch.Tensor, weight: torch.Tensor | None) -> Known:
    """The sums that no code changes."""
    if weight is None:
        return Known(x, None, torch.full_like(x[0], float(len(x))), tree(x))
    return Known(x, weight, tree(weight), tree(x * weight))


def positions(x: torch.Tensor, line: Line) -> torch.Tensor:
    """Codes before rounding: (x + m) / s; 0 where s is."""
    return x.add(line.low).div_(torch.where(line.scale > 0, line.scale, INFINITE))


def codes(x: torch.Tensor, line: Line, top: int) -> torch.Tensor:
    """The codes nearest to the weights, (size, count, blocks) float32."""
    return positions(x, line).round_().clamp_(0, top)


def moments(block: Known, spots: torch.Tensor, top: int) -> torch.Tensor:
    """L1, L2 and LX, (3, count, blocks), of the codes nearest to spots, (size, count, blocks) float32, which are overwritten."""
    terms = spots.new_empty(len(spots), 3, *spots.shape[1:])
    first, second, third = terms.unbind(1)
    level = torch.clamp(spots.round_(), 0, top, out=first)
    if block.weight is not None:
        level = spots.copy_(first)
        first.mul_(block.weight)
    torch.mul(first, level, out=second)
    torch.mul(first, block.x, out=third)
    return tree(terms)


def parts(block: Known, sums: Sums) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """W L2 - L1**2, 0 where it is only rounding; W LX - X L1; s of the line without a bound on m."""
    product = block.total * sums.l2
    spread = product - sums.l1 * sums.l1
    spread = torch.where(spread > product * SINGULAR, spread, 0.0)
    slope = block.total * sums.lx - block.sum_x * sums.l1
    return spread, slope, slope / spread


def gain(block: Known, sums: Sums) -> torch.Tensor:
    """See above; -inf where all codes are the same."""
    spread, slope, scale = parts(block, sums)
    at_zero = block.total * (sums.lx * sums.lx / sums.l2) - block.sum_x * block.sum_x
    bound = scale * sums.l1 < block.sum_x
    return torch.where(spread > 0, torch.where(bound, at_zero, slope * scale), -INFINITE)


def fitted(block: Known, sums: Sums, other: Line) -> Line:
    """The line of least error for these codes; `other` where all codes are the same."""
    spread, _, scale = parts(block, sums)
    low = (scale * sums.l1 - block.sum_x) / block.total
    bound = low < 0
    scale, low = torch.where(bound, sums.lx / sums.l2, scale), torch.where(bound, 0.0, low)
    return Line(torch.where(spread > 0, scale, other.scale), torch.where(spread > 0, low, other.low))


def excess(block: Known, sums: Sums, line: Line) -> torch.Tensor:
    """See above."""
    scale, low = line
    return ((scale * sums.l2 - 2 * sums.lx) - 2 * low * sums.l1) * scale + (block.total * low + 2 * block.sum_x) * low
