"""The scale, or scale and minimum, of a block that gives the least squared error; for every type with 32 weights to a scale.

A scale alone. For codes q the best scale and its error are known (as `make_qx_quants` of ggml-quants.c uses them):

    A = sum w x q,  B = sum w q^2,  scale = A / B,  sum w (x - scale q)^2 = sum w x^2 - A^2 / B

so a guess is an inverse scale: x times it is rounded to codes, and the guess with the largest A^2 / B wins. w is the weight of the
column, else 1. Guesses send the peak, which is the weight of the largest magnitude, to some levels of the grid.

A scale and a minimum. With the sums over the block W = w, S = w q, Q = w q^2, T = w x, P = w x q (as `make_qkx2_quants`)

    U = W P - T S,  D = W Q - S^2,  scale = U / D,  minimum = (T - scale S) / W,  error = constant - U^2 / (D W)

Guesses send the smallest weight to -a and the largest to levels + b: the range is clipped where a or b is negative, and spread
beyond the last code where it is positive. x is taken from the middle of the range, so that little is lost in the differences.

In the end the winner guesses again with its scale as float16 holds it: the codes nearest to that often have a still better scale.
Two traps of torch: number / tensor multiplies by the reciprocal, and so does tensor / number on a GPU. Tensors alone divide.
"""
from collections.abc import Callable

import torch

from .lanes import tree

TINY = 1e-15                                       # float16 holds no scale of such a block; ggml-quants.c, GROUP_MAX_EPS
FLAT = 2.0 ** -20                                  # D / (W Q) below it is rounding: float32 has 24 bits
Level = Callable[[torch.Tensor], torch.Tensor]     # nearest values of the grid; may work in place
Sum = Callable[[torch.Tensor], torch.Tensor]       # over dim 0


class BestScale:
    """The best scale of every block so far, (n,) float32, and its `power` B; 0 where no guess has a code but 0."""

    def __init__(self, blocks: torch.Tensor, weight: torch.Tensor | None, level: Level, total: Sum = tree):
        """blocks: (size, n) float32 of lanes.lanes, not modified; weight: the same shape or None."""
        self.blocks, self.weight, self.level, self.total = blocks, weight, level, total
        self.scale, self.power, self.best = blocks.new_zeros(3, blocks.shape[1])

    def search(self, levels: tuple[float, ...], rounds: int, longest: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(scale, power) after all guesses. levels: where the peak goes; longest: where it goes if none of them is any good."""
        low, high = self.blocks.amin(0), self.blocks.amax(0)
        peak = torch.where(high >= -low, high, low)
        inverse = 1 / torch.where(peak.abs() < TINY, torch.inf, peak)
        for level in levels:
            self.guess(level * inverse)
        for _ in range(rounds):
            self.guess(reciprocal(self.scale.half().float()))
        plain = peak / peak.new_full((), longest) + 0.0                       # no -0 where all are 0
        return torch.where(self.power > 0, self.scale, plain), self.power

    def guess(self, inverse: torch.Tensor) -> None:
        """inverse: (n,) float32."""
        code = self.level(self.blocks * inverse)
        share = code if self.weight is None else self.weight * code
        a, b = self.total(share * self.blocks), self.total(share * code)
        better = (b > 0) & (a * a > self.best * b)
        scale = a / b
        self.best = torch.where(better, scale * a, self.best)
        self.scale, self.power = torch.where(better, scale, self.scale), torch.where(better, b, self.power)


class BestRange:
    """The best scale and lower end of every block so far, (n,) float32; at first the span over the levels, and the smallest."""

    def __init__(self, blocks: torch.Tensor, weight: torch.Tensor | None, levels: int):
        """blocks: (size, n) float32 of lanes.lanes, not modified; weight: the same shape or None; levels: the largest code."""
        low = blocks.amin(0)
        self.span = blocks.amax(0) - low
        self.middle = low + 0.5 * self.span
        self.centred, self.weight, self.levels = blocks - self.middle, weight, levels
        self.mass = torch.full_like(low, len(blocks)) if weight is None else tree(weight)
        self.first = tree(self.centred if weight is None else weight * self.centred)
        self.scale, self.start = self.span / low.new_full((), levels), low - self.middle
        self.best = torch.zeros_like(low)

    def search(self, ends: tuple[tuple[float, float], ...], rounds: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(scale, minimum) after all guesses. ends: pairs (a, b)."""
        inverse = 1 / torch.where(self.span < TINY, torch.inf, self.span)
        for a, b in ends:
            self.guess((self.levels + a + b) * inverse, 0.5 * (self.levels + b - a))
        for _ in range(rounds):
            inverse = reciprocal(self.scale.half().float())
            self.guess(inverse, -self.start * inverse)
        return self.scale, self.start + self.middle

    def guess(self, inverse: torch.Tensor, offset: torch.Tensor | float) -> None:
        """inverse, offset: (n,) float32; codes are the weights from the middle on, times inverse, plus offset."""
        code = (self.centred * inverse).add_(offset).clamp_(0, self.levels).round_()
        share = code if self.weight is None else self.weight * code
        s, q, p = tree(share), tree(share * code), tree(share * self.centred)
        u, wide = self.mass * p - self.first * s, self.mass * q
        d = wide - s * s
        scale = u / d
        better = (d > FLAT * wide) & (scale * u > self.best)
        self.best = torch.where(better, scale * u, self.best)
        self.start = torch.where(better, (self.first - scale * s) / self.mass, self.start)
        self.scale = torch.where(better, scale, self.scale)


def reciprocal(scale: torch.Tensor) -> torch.Tensor:
    """1 / scale; 0 for 0, so that all codes become alike."""
    return torch.where(scale == 0, 0.0, 1 / scale)
