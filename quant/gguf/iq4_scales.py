"""Which scales the blocks of IQ4_NL and IQ4_XS get.

`best` and `max` guess (block_search.py). A guess sends the peak to a value on either side of the grid, whose halves differ.
IQ4_XS stores a scale as code * d, code in -32..31. With a block's best scale s and its B, a code costs B (s - code d)^2 of error:
so d is found as a block's scale is, with s for the weights and B for their importance. Often the largest s is best sent to less
than -32, and the other seven lie better.
The few guesses of `best` were picked greedily: each is the one that lowers the mean error most after those before it, on four
distributions.

`reference` is `quantize_row_iq4_nl_impl` of ggml-quants.c with 7 tries and no importance matrix: w = x^2, the peak goes to -127
first and then to -134 ... -120, sums are made one term after the other; d = s / -32 of the largest s, and the codes follow from d
before it is rounded.
"""
from functools import reduce

import torch

from .block_search import TINY, BestScale, reciprocal
from .iq4_grid import VALUES, nearest_value
from .lanes import rounded

BLOCKS, SIDE = 8, 32                               # blocks of a super-block, codes on either side (ggml-common.h, block_iq4_xs)
FEW, MANY = "best", "max"
LEVELS = {FEW: (-130., 114., -122., -136., -108., 122., 108., -126.),
          MANY: tuple(map(float, (*range(-144, -82, 2), *range(84, 134, 2))))}
SUPER_LEVELS = {FEW: (-32., -31., -30., -28.5, -26.5, -27.5, -23.5, -25.), MANY: tuple(-34 + step / 4 for step in range(56))}
ROUNDS = {FEW: 1, MANY: 2}                         # how often the winner guesses again
REFERENCE_TRIES = range(-7, 8)                     # ggml-quants.c, quantize_iq4_nl


def least_scale(blocks: torch.Tensor, weight: torch.Tensor | None, setting: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and B of every block, (n,) float32 each. blocks: (32, n); weight: the same shape or None; setting: best or max."""
    return BestScale(blocks, weight, nearest_value).search(LEVELS[setting], ROUNDS[setting], VALUES[0])


def least_super(scale: torch.Tensor, power: torch.Tensor, setting: str) -> tuple[torch.Tensor, torch.Tensor]:
    """d, rounded, of every super-block, (n / 8,), and its codes, (8, n / 8), both float32. scale, power: of least_scale."""
    scales = super_lanes(scale)
    found, _ = BestScale(scales, super_lanes(power), super_level).search(SUPER_LEVELS[setting], ROUNDS[setting], -SIDE)
    d = rounded(found)
    return d, super_level(scales * reciprocal(d))


def super_level(scaled: torch.Tensor) -> torch.Tensor:
    return scaled.clamp_(-SIDE, SIDE - 1).round_()


def super_lanes(scale: torch.Tensor) -> torch.Tensor:
    return scale.view(-1, BLOCKS).t().contiguous()


def reference_scale(blocks: torch.Tensor) -> torch.Tensor:
    """Scale of every block, (n,) float32. blocks: (32, n)."""
    peak = first_peak(blocks)
    empty = peak.abs() < TINY
    guarded = torch.where(empty, torch.inf, peak)
    found = BestScale(blocks, blocks * blocks, nearest_value, in_turn)
    found.guess(1 / (guarded / guarded.new_full((), -VALUES[0])))    # tensors alone divide, block_search.py
    for shift in REFERENCE_TRIES:
        found.guess(guarded.new_full((), shift + VALUES[0]) / guarded)
    scale = torch.where(found.power > 0, found.scale, peak)           # where x^2 is inf: a scale that float16 does not hold either
    return torch.where(empty, 0.0, scale)


def reference_super(scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """d, not rounded, of every super-block, (n / 8,), and its codes, (8, n / 8). scale: of reference_scale."""
    scales = super_lanes(scale)
    d = -first_peak(scales) / SIDE
    return d, super_level(scales * reciprocal(d))


def first_peak(lanes: torch.Tensor) -> torch.Tensor:
    """The number of the largest magnitude, with its sign; of several the first."""
    return lanes.gather(0, lanes.abs().argmax(0, keepdim=True))[0]


def in_turn(terms: torch.Tensor) -> torch.Tensor:
    """Sum over dim 0, from the first row on."""
    return reduce(torch.add, terms)
