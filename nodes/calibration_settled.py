"""Whether more prompts would still raise any layer's largest input.

An amax only ever grows: with n runs, m(n) is the largest of the first n. An expert has settled when m(n) <= m(n - k) (1 + rise) for
every layer, over its last k runs.
"""
from ..engine.calibration.gather import gather


def has_settled(session, role: str, runs: int, rise: float) -> bool:
    """True when no layer's largest input rose by more than `rise` (0.01: a hundredth) over the last `runs` finished runs.

    At least runs + 1 are needed. A layer that was seen in those runs alone rose without bound.
    """
    finished = sorted(run.number for run in session.runs(role) if run.finished)
    if len(finished) < runs + 1:
        return False
    gathered, late = gather(session, role), set(finished[-runs:])
    is_late = [run in late for run, _, _ in gathered.calls]
    return not any(_rose(gathered.amax(layer).tolist(), [is_late[place] for place in gathered.places(layer).tolist()], rise)
                   for layer in gathered.layers())


def _rose(amax: list[float], is_late: list[bool], rise: float) -> bool:
    """amax: of each call that saw the layer."""
    earlier, later = ([value for value, late in zip(amax, is_late, strict=True) if late == wanted] for wanted in (False, True))
    return bool(later) and (not earlier or max(later) > max(earlier) * (1 + rise))
