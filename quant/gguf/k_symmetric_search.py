"""The search for the scales of Q6_K and Q3_K: least squares, by column weights w where there are any. Settings best and max.

A sub-block of 16 weights x becomes codes l in -n .. n - 1, times d c: d a float16 for 16 sub-blocks, c whole, in -C .. C - 1.
    1  each sub-block: of all factors f the one with the largest S(w x l)^2 / S(w l^2), where l = clamp(round(x * -(n + f) / m)) and
       m is the weight of largest magnitude; its scale is s = S(w x l) / S(w l^2)
    2  d = the s of largest magnitude / -C, as float16;  c = clamp(round(s / d));  l = clamp(round(x / (d c)))
    3  again with d = S(c S(w x l)) / S(c^2 S(w l^2)), s = S(w x l) / S(w l^2); of both the one with the lower S(w (x - d c l)^2)
`max` begins step 2 with several d, and looks at the neighbours of each c. Sums are `lanes.tree`.

The factors are those that lower the error most, found one after the other and then exchanged, on Gaussian, Laplace and Student-t5
weights. A whole f puts m exactly on a code, and with 64 codes nothing else is worth as much. Relative error of Q6_K on Gaussian
weights: with f = 0, -1, .. -5: 0.0167, with the 8 here: 0.0166; with 7 between -2 and 2 and both signs of the scale: 0.0170;
llama.cpp's 19, with errors that count by x^2: 0.0178. With factors chosen so, the other sign of the scale takes less than 1e-4 off
the error, and is not tried; 5 or 7 evenly spaced ones need it.
"""
from typing import NamedTuple

import torch

from .k_symmetric_layout import Kind
from .lanes import rounded, tree

TINY = 1e-15                                       # of no use to a float16 scale; ggml-quants.c: GROUP_MAX_EPS


class Setting(NamedTuple):
    """factors f of step 1; starts: what the first d of step 2 is multiplied by; reach: neighbours of c on either side."""

    factors: tuple[float, ...]
    starts: tuple[float, ...] = (1.0,)
    reach: int = 0


STARTS = (1.0, 1.01, 1.02, 1.03)                   # of max; a lower d than the first one has no c for the largest scale
SETTINGS = {("Q6_K", "best"): Setting((0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -6.0, -7.0)),
            ("Q3_K", "best"): Setting((0.1, -0.2, 0.4, -0.7, 0.8, -1.0)),
            ("Q6_K", "max"): Setting(tuple(0.5 * step for step in range(1, -24, -1)), STARTS, 1),
            ("Q3_K", "max"): Setting(tuple(0.25 * step for step in range(-4, 5)), STARTS, 1)}


class Values(NamedTuple):
    """x: (16, 16, n) float32 as `spread`; weight: the same or None; product: weight * x."""

    x: torch.Tensor
    weight: torch.Tensor | None
    product: torch.Tensor

    def moments(self, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """S(w x l), S(w l^2) of each sub-block, (16, n)."""
        weighted = codes if self.weight is None else self.weight * codes
        return tree(self.product * codes), tree(weighted * codes)


class Trial(NamedTuple):
    """A c for every sub-block, (16, n), what it costs, and its S(w x l), S(w l^2)."""

    c: torch.Tensor
    error: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor

    def better(self, other: "Trial") -> "Trial":
        """By sub-block, or by super-block where errors are (n,); `self` where equal."""
        lower = other.error < self.error
        return Trial(*(torch.where(lower, new, old) for new, old in zip(other, self, strict=True)))


def search(values: Values, kind: Kind, setting: Setting) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns d (n,), float32 of a float16, and c (16, n), float32. Raises ValueError where float16 does not hold d."""
    scales = _scales(values, kind, setting.factors)
    first = _largest(scales) * (-1.0 / kind.steps) + 0.0                      # + 0: no -0
    d = torch.zeros_like(first)
    c, lowest = torch.zeros_like(scales), torch.full_like(first, torch.inf)
    for start in setting.starts:
        trial_d, trial_scales = rounded(first * start), scales
        for last in (False, True):
            trial = _nearby(values, kind, trial_d, _near(trial_scales, trial_d, kind.steps), setting.reach)
            total = tree(trial.error)
            lower = total < lowest
            d, c, lowest = torch.where(lower, trial_d, d), torch.where(lower, trial.c, c), torch.where(lower, total, lowest)
            if not last:
                trial_d = rounded(_ratio(tree(trial.c * trial.first), tree(trial.c * trial.c * trial.second)))
                trial_scales = _ratio(trial.first, trial.second)
    return d, c


def codes(x: torch.Tensor, d: torch.Tensor, c: torch.Tensor, levels: int) -> torch.Tensor:
    """The nearest codes for the stored scales, float32; 0 where a scale is 0."""
    return _codes(x, d * c, levels)


def _codes(x: torch.Tensor, step: torch.Tensor, levels: int) -> torch.Tensor:
    return (x / torch.where(step == 0, torch.inf, step)).clamp_(-levels, levels - 1).round_()


def _largest(values: torch.Tensor) -> torch.Tensor:
    """The value of largest magnitude over dim 0, with its sign; the positive one of two."""
    high, low = values.amax(0), values.amin(0)
    return torch.where(high >= -low, high, low)


def _ratio(top: torch.Tensor, bottom: torch.Tensor) -> torch.Tensor:
    return torch.where(bottom > 0, top / bottom, 0.0)


def _near(scales: torch.Tensor, d: torch.Tensor, steps: int) -> torch.Tensor:
    """c: the whole numbers nearest to scales / d."""
    return torch.where(d == 0, 0.0, scales / d).clamp_(-steps, steps - 1).round_()


def _scales(values: Values, kind: Kind, factors: tuple[float, ...]) -> torch.Tensor:
    """Step 1, (16, n). A block of zeros has scale 0."""
    largest = _largest(values.x)
    inverse = torch.where(largest.abs() < TINY, 0.0, largest.reciprocal())
    scale, best = torch.zeros_like(largest), torch.zeros_like(largest)
    for factor in factors:
        trial = (values.x * (inverse * -(kind.levels + factor))).clamp_(-kind.levels, kind.levels - 1).round_()
        first, second = values.moments(trial)
        ratio = first / second
        gain = ratio * first
        higher = gain > best                                                  # false for 0 / 0
        scale, best = torch.where(higher, ratio, scale), torch.where(higher, gain, best)
    return scale


def _nearby(values: Values, kind: Kind, d: torch.Tensor, c: torch.Tensor, reach: int) -> Trial:
    """The best c among those at most `reach` away."""
    found = _trial(values, kind, d, c)
    for away in range(1, reach + 1):
        for moved in (c - away, c + away):
            found = found.better(_trial(values, kind, d, moved.clamp_(-kind.steps, kind.steps - 1)))
    return found


def _trial(values: Values, kind: Kind, d: torch.Tensor, c: torch.Tensor) -> Trial:
    step = d * c
    trial = _codes(values.x, step, kind.levels)
    first, second = values.moments(trial)
    square = trial.mul_(step).sub_(values.x).square_()
    return Trial(c, tree(square if values.weight is None else square.mul_(values.weight)), first, second)
