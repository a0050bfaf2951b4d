"""llama.cpp's own search for Q4_K, Q5_K and Q2_K without an importance matrix: ggml-quants.c, `quantize_row_q4_K_ref` and its like.

For each sub-block (`make_qkx2_quants`), with weights w = |x| for Q2_K, |x| + sqrt(mean x**2) for the others:

    min = min(0, least x), s = (max - min) / top; error e = sum w (s l + min - x)**2, for Q2_K sum w |s l + min - x|
    for is = 0..steps: l = round((first + 0.1 is + top) / (max - min) * (x - min)); s and min <= 0 by weighted least squares;
                       if their error is lower: keep them

`min` is that of the best try so far: the next try lays its grid from there. Then d = largest s / code_top, dmin = largest -min /
code_top, both codes round to nearest, and l is taken anew from the float16; where d S is 0 the l of the search stays.

The sums run in C's order, one weight after the other, each product and sum rounded to float32, as a compiler without fused
multiply-add and without reordering has it (stock builds, SSE2). Where a Python number divides or is divided, it is a tensor: torch
would multiply by the reciprocal.
"""
from typing import NamedTuple

import numpy
import torch

from .k_asymmetric_forms import FORMS
from .lanes import half


class Rule(NamedTuple):
    """The arguments of make_qkx2_quants: first, steps; whether the error is of absolute differences."""

    first: float
    steps: int
    absolute: bool = False


class Line(NamedTuple):
    """s and min of sub-blocks."""

    scale: torch.Tensor
    least: torch.Tensor


RULES = {"Q4_K": Rule(-1.0, 20), "Q5_K": Rule(-0.5, 15), "Q2_K": Rule(-0.5, 15, absolute=True)}


def search(x: torch.Tensor, name: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x: (size, count, blocks) float32, not modified. Returns d and dmin (blocks, 2) float16, S and M (count, blocks) and l (size,
    count, blocks), whole float32. Raises ValueError where float16 does not hold a scale."""
    form, rule = FORMS[name], RULES[name]
    scale, low, levels = grid(x, importance(x, rule), form.top, rule)
    largest = [torch.where(most > 0, most, 0.0) for most in (scale.amax(0), low.amax(0))]          # and 0 for -0
    code_top = x.new_tensor(form.code_top)
    scales, minima = (code(part, most, code_top) for part, most in zip((scale, low), largest, strict=True))
    d = half(torch.stack([most / code_top for most in largest], 1))
    unit, shift = d[:, 0].float() * scales, d[:, 1].float() * minima
    anew = ((x + shift) / unit).round_().clamp_(0, form.top)
    return d, scales, minima, torch.where(unit > 0, anew, levels)


def code(part: torch.Tensor, most: torch.Tensor, code_top: torch.Tensor) -> torch.Tensor:
    """Codes of scales or minima: (code_top / largest) times them, rounded."""
    inverse = torch.where(most > 0, code_top / most, 0.0)
    return whole(inverse * part).clamp_(min=0).minimum(code_top)


def importance(x: torch.Tensor, rule: Rule) -> torch.Tensor:
    """w."""
    size = x.abs()
    if rule.absolute:
        return size
    # In float64 and back is the nearest float32; torch's own float32 root, of a vector library, may be the one beside it.
    return size + in_order(x * x).mul_(1 / len(x)).double().sqrt_().float()


def in_order(terms: torch.Tensor) -> torch.Tensor:
    """Sum over dim 0, one after the other."""
    total = terms[0].clone()
    for term in terms[1:]:
        total += term
    return total


def grid(x: torch.Tensor, w: torch.Tensor, top: int, rule: Rule) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """s, -min and l of each sub-block."""
    least, most = x.amin(0).clamp_(max=0), x.amax(0)
    sum_w, sum_x = in_order(w), in_order(w * x)
    same = most == least
    constant = least
    inverse = x.new_tensor(top) / (most - least)
    scale = inverse.reciprocal()
    kept = nearest(x, inverse, least, top)
    best = error(x, w, Line(scale, least), kept, rule)
    for step in range(rule.steps + 1):
        tried = nearest(x, x.new_tensor(factor(rule.first, step, top)) / (most - least), least, top)
        line = fitted(x, w, tried, sum_w, sum_x)
        new = error(x, w, line, tried, rule)
        lower = new < best                         # false where there is no line
        best, scale, least = (torch.where(lower, a, b) for a, b in zip((new, *line), (best, scale, least), strict=True))
        kept = torch.where(lower, tried, kept)
    return torch.where(same, 0.0, scale), torch.where(same, -constant, -least), torch.where(same, 0.0, kept)


def factor(first: float, step: int, top: int) -> float:
    """first + 0.1 step + top in C's float."""
    return float(numpy.float32(first) + numpy.float32(0.1) * numpy.float32(step) + numpy.float32(top))


def nearest(x: torch.Tensor, inverse: torch.Tensor, least: torch.Tensor, top: int) -> torch.Tensor:
    """l on the grid from `least`."""
    return whole((x - least).mul_(inverse)).clamp_(0, top)


def whole(values: torch.Tensor) -> torch.Tensor:
    """Nearest whole numbers, in place; 0 of NaN and inf (a denormal's reciprocal): so end the bits of `nearest_int`."""
    return values.round_().nan_to_num_(0.0, 0.0, 0.0)


def fitted(x: torch.Tensor, w: torch.Tensor, levels: torch.Tensor, sum_w: torch.Tensor, sum_x: torch.Tensor) -> Line:
    """s and min <= 0 of least weighted squares; s is no number where there are none."""
    weighted = w * levels
    sum_l, sum_l2, sum_xl = in_order(weighted), in_order(weighted * levels), in_order(weighted * x)
    spread = sum_w * sum_l2 - sum_l * sum_l
    scale, least = (sum_w * sum_xl - sum_x * sum_l) / spread, (sum_l2 * sum_x - sum_l * sum_xl) / spread
    above = least > 0
    scale = torch.where(above, sum_xl / sum_l2, scale)
    return Line(torch.where(spread > 0, scale, float("nan")), torch.where(above, 0.0, least))


def error(x: torch.Tensor, w: torch.Tensor, line: Line, levels: torch.Tensor, rule: Rule) -> torch.Tensor:
    """Weighted error, squared or absolute."""
    away = (levels * line.scale).add_(line.least).sub_(x)
    return in_order(w * (away.abs_() if rule.absolute else away.mul_(away)))
