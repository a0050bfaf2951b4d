"""A size budget, solved: the format of every layer, so that the file fits and the total error is least.

    minimise  Σ c·lost(layer, choice)    with  Σ bytes <= budget  and  Σ multiply-adds in slow units <= (1 - minimum_fast) · all

lost = ‖W − Ŵ‖² of a layer in a format, c its weight (1 without a calibration). The error told is Σ c·lost / Σ c·‖W‖². This is the
multiple-choice knapsack problem (Kellerer, Pferschy, Pisinger, Knapsack Problems, 2004, chapter 11), solved by relax.py: exactly,
or with a proved gap, which is told. Nothing is drawn by chance, so the same numbers give the same plan.
"""
import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import PlanError
from .relax import minimise

GB = 1e9


@dataclass(frozen=True)
class Candidates:
    """What a layer may become. options: candidate -> (bytes, lost), lost = ‖W − Ŵ‖²; energy: ‖W‖²; weight: c; multiply_adds: of one
    forward pass."""

    options: Mapping[str, tuple[int, float]]
    energy: float
    weight: float = 1.0
    multiply_adds: int = 0


@dataclass(frozen=True)
class Solution:
    """The choice for each layer and what it comes to.

    bytes: with the fixed ones; error: Σ c·lost / Σ c·energy; gap: at most how much of its own error the least possible lies below
    it, 0.0 when the solution is proved best; fast_share: of the multiply-adds of these layers; notices: what the user is to know.
    """

    choices: dict[str, str]
    bytes: int
    error: float
    gap: float
    fast_share: float
    notices: tuple[str, ...] = ()


def solve(layers: Mapping[str, Candidates], budget_bytes: int, *, fixed_bytes: int = 0, minimum_fast: float = 0.0,
          fast: frozenset[str] = frozenset()) -> Solution:
    """The best plan of at most `budget_bytes`.

    fixed_bytes: of all that is never quantized; fast: candidates that the card multiplies natively; minimum_fast: their least share
    of the multiply-adds, 0 to 1. Raises PlanError when no plan is small enough, naming the smallest, or fast enough, naming the
    share that can be had.
    """
    for layer, each in layers.items():
        if not each.options or not all(0 <= each.weight * lost < math.inf for _, lost in each.options.values()):
            raise PlanError(f"{layer}: expected candidates with finite errors, found {dict(each.options)}, choose other formats")
    names = [list(each.options) for each in layers.values()]
    sizes = [[count for count, _ in each.options.values()] for each in layers.values()]
    costs = [[each.weight * lost for _, lost in each.options.values()] for each in layers.values()]
    slow = [[0 if name in fast else each.multiply_adds for name in each.options] for each in layers.values()]
    room, slow_room = budget_bytes - fixed_bytes, _slow_room(slow, layers, minimum_fast)
    smallest, _ = minimise(sizes, [slow], [slow_room])
    least = fixed_bytes + _total(sizes, smallest)
    if least > budget_bytes:
        raise PlanError(f"size budget: expected at least {least / GB:.3f} GB for this expert"
                        f"{f' with {minimum_fast:.0%} fast' if minimum_fast else ''}, found {budget_bytes / GB:.3f} GB, "
                        "give it more, or let smaller formats in")
    picked, gap = minimise(costs, [sizes, slow], [room, slow_room], fallback=smallest)
    return _told(layers, names, picked, (fixed_bytes, budget_bytes, gap, fast))


def _slow_room(slow: list[list[int]], layers: Mapping[str, Candidates], minimum_fast: float) -> int:
    """Multiply-adds that may run in slow units. Raises PlanError when even the fastest plan has more."""
    whole = sum(each.multiply_adds for each in layers.values())
    room, fewest = int((1.0 - minimum_fast) * whole), sum(min(row) for row in slow)
    if fewest > room:
        most = math.floor(1e4 * (1 - fewest / whole)) / 1e4
        raise PlanError(f"minimum share of fast compute: expected at most {most} with these formats on this card, "
                        f"found {minimum_fast}, lower it, or let other formats in")
    return room


def _total(table: list[list], picked: list[int]):
    return sum(row[place] for row, place in zip(table, picked, strict=True))


def _told(layers: Mapping[str, Candidates], names: list[list[str]], picked: list[int], facts: tuple) -> Solution:
    """Sums of a choice, recomputed from the input."""
    fixed_bytes, budget_bytes, gap, fast = facts
    choices = {layer: row[place] for layer, row, place in zip(layers, names, picked, strict=True)}
    chosen = [(each, each.options[choices[layer]], choices[layer] in fast) for layer, each in layers.items()]
    energy = sum(each.weight * each.energy for each, _, _ in chosen) or 1.0
    whole = sum(each.multiply_adds for each, _, _ in chosen) or 1
    size = fixed_bytes + sum(count for _, (count, _), _ in chosen)
    notices = []
    if all(lost <= min(each.options.values(), key=lambda option: option[1])[1] for each, (_, lost), _ in chosen):
        notices.append(f"every layer is as precise as it may be: {size / GB:.2f} GB, more of the {budget_bytes / GB:.2f} GB "
                       "would gain nothing")
    if gap:
        notices.append(f"the least possible error is at most {gap:.2%} below this plan's")
    return Solution(choices, size, sum(each.weight * lost for each, (_, lost), _ in chosen) / energy, gap,
                    sum(each.multiply_adds for each, _, is_fast in chosen if is_fast) / whole, tuple(notices))
