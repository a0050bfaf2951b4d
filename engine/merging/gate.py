"""Classic injection: how much of a LoRA's delta is let through, from its own statistics and the base's.

X = (alpha / rank) up @ down, before the strength; W = the original base (the first engine took the half-merged one and
rounded between LoRAs; both made the result depend on the order):
    new       = var(X) > 1.5 var(W)                       unbiased variances over all elements
    threshold = (0.4 if new else 1.8) mean|X|             keep X where |X| > threshold
    limit     = 0.08 if new else 0.05                     if the largest kept |X| exceeds it, the whole X is scaled to it
Source: darksidewalker/dasiwa-wan2.2-master, engine.py, commits 252d6e2 to e025862.
"""
import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class ClassicConstants:
    """Defaults are the original's. sensitivity is in units of mean|X|, the limits in units of the weights."""

    novelty: float = 1.5
    sensitivity_new: float = 0.4
    sensitivity_refine: float = 1.8
    limit_new: float = 0.08
    limit_refine: float = 0.05


@dataclass(frozen=True)
class Moments:
    """Sums over elements in float64, so that bands add up: count, Σx, Σ|x|, Σx², and max|x|."""

    n: int = 0
    total: float = 0.0
    total_abs: float = 0.0
    total_sq: float = 0.0
    amax: float = 0.0

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.n + other.n, self.total + other.total, self.total_abs + other.total_abs,
                       self.total_sq + other.total_sq, max(self.amax, other.amax))

    @property
    def mean_abs(self) -> float:
        return self.total_abs / self.n if self.n else 0.0

    @property
    def variance(self) -> float:
        """Unbiased; 0 for fewer than two elements, where it is not defined."""
        if self.n < 2:
            return 0.0
        return max(0.0, (self.total_sq - self.total * self.total / self.n) / (self.n - 1))


@dataclass(frozen=True)
class Gate:
    """delta = X where |X| > threshold, times factor; else 0."""

    threshold: float
    factor: float
    is_new: bool
    limit_hit: bool

    def apply(self, delta: torch.Tensor, strength: float) -> torch.Tensor:
        """Gate and scale `delta` IN PLACE: float32, any shape. Returns it."""
        # hardshrink keeps x where |x| > lambd and writes 0 elsewhere: the mask and the product in one pass
        torch.hardshrink(delta, self.threshold, out=delta)
        return delta.mul_(self.factor * strength)


def moments(band: torch.Tensor) -> Moments:
    """Moments of a tensor of any shape and float dtype; the sums run in float64 on a CPU copy."""
    wide = band.detach().to("cpu", torch.float64).reshape(-1)
    if not wide.numel():
        return Moments()
    magnitude = wide.abs()
    return Moments(wide.numel(), wide.sum().item(), magnitude.sum().item(), torch.dot(wide, wide).item(), magnitude.amax().item())


def decide(delta: Moments, base: Moments, constants: ClassicConstants, name: str = "") -> Gate:
    """The gate of one delta. delta: moments of X; base: moments of the original weight; name: of the LoRA.

    Raises ValueError for a delta that is not finite: an endless threshold would let nothing of it pass, and say nothing.
    """
    if not math.isfinite(delta.total_sq):
        raise ValueError(f"the delta overflows float32; lower the strength, or replace the LoRA {name}".rstrip())
    is_new = delta.variance > constants.novelty * base.variance
    threshold = (constants.sensitivity_new if is_new else constants.sensitivity_refine) * delta.mean_abs
    limit = constants.limit_new if is_new else constants.limit_refine
    peak = delta.amax if delta.amax > threshold else 0.0
    limit_hit = peak > limit
    return Gate(threshold, limit / peak if limit_hit else 1.0, is_new, limit_hit)
