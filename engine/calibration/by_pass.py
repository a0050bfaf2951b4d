"""The largest inputs of a session by forward pass: what the original's log calls a call, cond and uncond together.

The original logs cond and uncond of a step as the one call that they are where ComfyUI batches them. Where memory is too short for
that it runs them one after the other, and here they count as one pass still.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np

from .gather import Gathered
from .records import Call


@dataclass(frozen=True)
class ByPass:
    """runs: of each pass, the number of its run. amax: layer -> (passes,) float64, NaN where no finite input was seen; left_out:
    layer -> inputs that were not finite."""

    runs: np.ndarray
    amax: Mapping[str, np.ndarray]
    left_out: Mapping[str, int] = field(default_factory=dict)


def passes(calls: Sequence[Call]) -> list[list[int]]:
    """Places of the calls of a step that were one forward pass: those in a row that have one sigma and different parts."""
    found: list[list[int]] = []
    for place, call in enumerate(calls):
        last = [calls[each] for each in found[-1]] if found else []
        if last and last[0].sigma == call.sigma and call.part not in {each.part for each in last}:
            found[-1].append(place)
        else:
            found.append([place])
    return found


def by_pass(gathered: Gathered) -> ByPass:
    """Every pass of what was gathered, in order of recording."""
    starts, runs, before = [], [], 0
    for (run, _), step in groupby(gathered.calls, key=lambda each: each[:2]):
        calls = [call for _, _, call in step]
        for places in passes(calls):
            starts.append(before + places[0])
            runs.append(run)
        before += len(calls)
    amax: dict[str, np.ndarray] = {}
    for layer in gathered.layers():
        by_call = np.full(before, np.nan)
        by_call[gathered.places(layer).numpy()] = gathered.amax(layer).double().numpy()
        amax[layer] = np.fmax.reduceat(by_call, starts)                    # fmax passes NaN over
    left_out = {layer: count for layer in amax if (count := gathered.left_out(layer))}
    return ByPass(np.array(runs, dtype=np.int64), amax, left_out)
