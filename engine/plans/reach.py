"""Every plan within an allowance of the bound, by dynamic programming over what it uses: the second half of relax.py.

A state is what the layers so far use of each limit; of equal ones the least excess stays. Where that leaves more than STATES, uses
count as equal that fall in one cell of a grid, made coarser until they fit: layers of three shapes differ by a few kilobytes of
scales, which then fall together first. From there on not every plan is seen, and the answer says so.
numpy, because torch shares arrays of this size out to threads, which was 8 times slower on two busy cores.
"""
from dataclasses import dataclass

import numpy

STATES = 8_000                                     # kept after each layer; 100 layers with a choice then take about 0.3 s
MARGIN = 1e-9                                      # of the allowance, for the rounding of sums in float64
FINEST = 2.0 ** -24                                # first grid, as a part of what a limit allows


@dataclass
class _States:
    """use: (limits, states) int64, so far; excess: (states,) float64; parent, place: (states,), where each came from."""

    use: numpy.ndarray
    excess: numpy.ndarray
    parent: numpy.ndarray
    place: numpy.ndarray

    def pick(self, wanted: numpy.ndarray) -> "_States":
        return _States(self.use[:, wanted], self.excess[wanted], self.parent[wanted], self.place[wanted])


@dataclass
class _Turn:
    """A layer's options within the allowance. place: their numbers; use: (limits, options) int64; excess: (options,) float64."""

    place: list[int]
    use: numpy.ndarray
    excess: numpy.ndarray


def reach(excess: list[list[float]], uses: list[list[list[int]]], limits: list[int],
          allowance: tuple[list[float], float]) -> tuple[list[int] | None, bool]:
    """The plan with the least Σ excess + prices·slack, if that is within the allowance, and whether all such plans were seen.

    excess: layer -> option -> excess >= 0; uses, limits: as in relax.minimise; allowance: the prices and the most there may be.
    """
    prices, allowed = numpy.array(allowance[0], dtype=numpy.float64), allowance[1] * (1.0 + MARGIN)
    turns = [_turn(row, [table[layer] for table in uses], allowed) for layer, row in enumerate(excess)]
    decided, choosing = ([turn for turn in turns if (len(turn.place) == 1) is alone] for alone in (True, False))
    start = sum(float(turn.excess[0]) for turn in decided)
    room = numpy.array(limits, dtype=numpy.int64).reshape(-1, 1)
    room = room - sum((turn.use for turn in decided), numpy.zeros_like(room))
    least, most = (sum((pick(turn.use, 1, keepdims=True) for turn in choosing), numpy.zeros_like(room))
                   for pick in (numpy.amin, numpy.amax))
    states = _States(numpy.zeros_like(room), numpy.array([start], dtype=numpy.float64), *numpy.zeros((2, 1), dtype=numpy.int64))
    trail, grid = [], 0.0
    for turn in choosing:
        least, most = least - turn.use.min(1, keepdims=True), most - turn.use.max(1, keepdims=True)
        states = _open(_grown(states, turn), (room - least, room - most), prices, allowed)
        states, grid = _thinned(states, room, grid)
        trail.append(states)
    cost = states.excess + prices @ (room - states.use)
    if not cost.size or cost.min() > allowed or (states.use[:, cost.argmin()] > room[:, 0]).any():
        return None, not grid
    picked = iter(_back(trail, choosing, int(cost.argmin())))
    return [turn.place[0] if len(turn.place) == 1 else next(picked) for turn in turns], not grid


def _turn(excess: list[float], uses: list[list[int]], allowed: float) -> _Turn:
    place = [number for number, each in enumerate(excess) if each <= allowed]
    use = numpy.array([[row[number] for number in place] for row in uses], dtype=numpy.int64)
    return _Turn(place, use.reshape(len(uses), len(place)), numpy.array([excess[number] for number in place]))


def _grown(states: _States, turn: _Turn) -> _States:
    """Every state with every option of one layer, options of a state side by side."""
    count, width = states.excess.size, turn.excess.size
    return _States((states.use[:, :, None] + turn.use[:, None, :]).reshape(len(turn.use), count * width),
                   (states.excess[:, None] + turn.excess).ravel(), numpy.arange(count).repeat(width),
                   numpy.tile(numpy.arange(width), count))


def _open(states: _States, ends: tuple[numpy.ndarray, numpy.ndarray], prices: numpy.ndarray, allowed: float) -> _States:
    """Those that can keep every limit yet, and whose excess with the price of what must stay free is within the allowance.

    ends: the most a state may use of each limit now, and the use under which some must stay free.
    """
    top, bottom = ends
    within = states.excess + prices @ numpy.maximum(bottom - states.use, 0) <= allowed
    return states.pick((within & (states.use <= top).all(0)).nonzero()[0])


def _thinned(states: _States, room: numpy.ndarray, grid: float) -> tuple[_States, float]:
    """One state for each use, or each cell of a grid as coarse as it takes. grid: a cell as a part of the limits, 0.0: exact."""
    while True:
        cells = states.use // numpy.maximum((abs(room) * grid).astype(numpy.int64), 1)
        order = numpy.lexsort((states.excess, *cells))
        cells, is_new = cells[:, order], numpy.ones(order.size, dtype=bool)
        is_new[1:] = (cells[:, 1:] != cells[:, :-1]).any(0)
        if is_new.sum() <= STATES:
            return states.pick(order[is_new]), grid
        grid = max(2.0 * grid, FINEST)


def _back(trail: list[_States], choosing: list[_Turn], state: int) -> list[int]:
    """The options on the way to a state."""
    picked = []
    for states, turn in zip(reversed(trail), reversed(choosing), strict=True):
        picked.append(turn.place[int(states.place[state])])
        state = int(states.parent[state])
    return picked[::-1]
