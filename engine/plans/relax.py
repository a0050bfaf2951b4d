"""The multiple-choice knapsack problem: one option per layer, least total cost, under limits. Exact, or with a proved gap.

Lagrange: with prices p >= 0 on the limits every layer chooses alone,

    bound(p) = Σ_i min_j (cost_ij + p·use_ij) − p·limit  <=  the least cost that keeps the limits          (weak duality)

and the best bound is searched for. The excess of an option, e_ij = cost_ij + p·use_ij − min_j (...), is what it costs over the
bound; a plan costs bound + Σ e + p·slack. So a plan within g of the bound has Σ e + p·slack <= g: for small g few layers have a
choice left, and dynamic programming over (use so far) -> least Σ e sees every such plan (reach.py). g is doubled until it finds
one, which then is the best there is. Where the states become too many, the cheapest go on, and the plan comes with its gap.
"""
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy

from .reach import reach

HALVINGS = 60                                      # of an interval of prices: its ends agree to float64
SECTIONS = 40                                      # of the same, by 0.618 each: 4e-9 of it is left
GOLDEN = (5 ** 0.5 - 1) / 2
FIRST = 2.0 ** -24                                 # g at first, as a part of all the cost there is


@dataclass
class _Problem:
    """cost: (layers, options), padded with inf; uses: (limits, layers, options), padded with 0; float64. limits: integers."""

    cost: numpy.ndarray
    uses: numpy.ndarray
    limits: list[int]
    best: tuple[float, list[float]] = field(default=(float("-inf"), []))

    def priced(self, prices: list[float]) -> numpy.ndarray:
        """(layers, options): cost with every use paid for."""
        return self.cost + numpy.tensordot(numpy.array(prices, dtype=numpy.float64), self.uses, 1)

    def is_over(self, prices: list[float], limit: int) -> bool:
        """True when the layers, each choosing alone, use more of a limit than there is."""
        chosen = self.priced(prices).argmin(1)
        return self.uses[limit][numpy.arange(len(chosen)), chosen].sum() > self.limits[limit]

    def bound(self, prices: list[float]) -> float:
        """A lower bound of every plan's cost; the best one seen is remembered with its prices."""
        found = float(self.priced(prices).min(1).sum()) - sum(map(float.__mul__, prices, map(float, self.limits)))
        self.best = max(self.best, (found, prices))
        return found


def minimise(costs: list[list[float]], uses: list[list[list[int]]], limits: list[int], *,
             fallback: list[int] | None = None) -> tuple[list[int], float]:
    """The option of each layer with the least total cost, and the gap: 0.0 when proved best, else an upper end of
    (cost − least cost) / cost.

    costs: layer -> option -> cost >= 0; uses: at most two limits -> layer -> option -> use, an integer >= 0; limits: the most that
    Σ use may be; one that cannot bind costs nothing. fallback: a choice that keeps the limits, taken when the search is cut short
    and finds none better; with one limit that of least use serves. Raises ValueError when no plan is found that keeps the limits.
    """
    if not costs:
        return [], 0.0
    binding = [number for number, table in enumerate(uses) if sum(map(max, table)) > limits[number]]
    uses, limits = [uses[number] for number in binding], [limits[number] for number in binding]
    problem = _problem(costs, uses, limits)
    _raise_bound(problem)
    bound, prices = problem.best
    priced = problem.priced(prices)
    excess = [row[:len(cost)] for row, cost in zip((priced - priced.min(1, keepdims=True)).tolist(), costs, strict=True)]
    worst = sum(map(max, excess)) + sum(map(float.__mul__, prices, map(float, limits)))
    allowed, ruled_out = FIRST * (sum(map(max, costs)) or 1.0), 0.0
    while True:
        found, is_whole = reach(excess, uses, limits, (prices, allowed))
        if found is not None and is_whole:
            return found, 0.0
        if found is not None or allowed > worst:
            plans = (found, fallback, _frugal(uses, limits) if len(limits) == 1 else None)
            return _cheapest(costs, [plan for plan in plans if plan is not None], bound + ruled_out)
        allowed, ruled_out = 2.0 * allowed, allowed if is_whole else ruled_out


def _problem(costs: list[list[float]], uses: list[list[list[int]]], limits: list[int]) -> _Problem:
    """Tables of equal width."""
    width = max(map(len, costs), default=0)
    cost = [[*map(float, row), *[float("inf")] * (width - len(row))] for row in costs]
    use = [[[*map(float, row), *[0.0] * (width - len(row))] for row in table] for table in uses]
    return _Problem(numpy.array(cost, dtype=numpy.float64).reshape(len(costs), width),
                    numpy.array(use, dtype=numpy.float64).reshape(len(uses), len(costs), width), limits)


def _frugal(uses: list[list[list[int]]], limits: list[int]) -> list[int] | None:
    """The options that use least of the only limit, if they keep it."""
    plan = [row.index(min(row)) for row in uses[0]]
    return plan if sum(map(min, uses[0])) <= limits[0] else None


def _cheapest(costs: list[list[float]], plans: list[list[int]], bound: float) -> tuple[list[int], float]:
    """The cheapest of some plans and its gap to a lower bound. Raises ValueError when there is none."""
    if not plans:
        raise ValueError("no plan keeps the limits")
    cost, plan = min((sum(row[place] for row, place in zip(costs, plan, strict=True)), plan) for plan in plans)
    return plan, max(0.0, (cost - bound) / cost) if cost else 0.0


def _raise_bound(problem: _Problem) -> None:
    """Find good prices; they stay in `problem.best`. With two limits a golden section over the first, the bound being concave."""
    if not problem.limits:
        problem.bound([])
    elif len(problem.limits) == 1:
        problem.bound([_price(problem, lambda price: [price], 0)])
    else:
        _golden(lambda first: problem.bound([first, _price(problem, lambda second: [first, second], 1)]), _scale(problem, 0))


def _scale(problem: _Problem, limit: int) -> float:
    """A price at which cost and use weigh about the same; 0 use or cost gives 1."""
    cost, use = float(problem.cost[numpy.isfinite(problem.cost)].max()), float(problem.uses[limit].max())
    return cost / use if cost and use else 1.0


def _price(problem: _Problem, prices: Callable[[float], list[float]], limit: int) -> float:
    """The least price at which the layers keep one limit, each choosing alone; the highest tried when they never do."""
    if not problem.is_over(prices(0.0), limit):
        return 0.0
    low, high = 0.0, _scale(problem, limit)
    for _ in range(HALVINGS):
        if not problem.is_over(prices(high), limit):
            break
        low, high = high, 4.0 * high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if problem.is_over(prices(middle), limit) else (low, middle)
    return high


def _golden(value: Callable[[float], float], scale: float) -> None:
    """Look for the maximum of a concave function of a price >= 0."""
    high, seen = scale, value(0.0)
    for _ in range(HALVINGS):
        here = value(high)
        if here < seen:
            break
        seen, high = here, 4.0 * high
    low = 0.0
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = value(left), value(right)
    for _ in range(SECTIONS):
        if at_left < at_right:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = value(right)
        else:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = value(left)
