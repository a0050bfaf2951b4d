"""What a person should know of a session before its numbers are used: how much was recorded, on what, and what is missing.

    rise of a layer = largest amax of all runs / largest of those before the last quarter of the runs - 1

Below SETTLED it has settled: more prompts would hardly find larger inputs, and the margin of the scales, by default 100 %, covers
far more.
"""
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from ..plans.input_scales import MARGIN
from ..plans.names import some
from .by_pass import ByPass
from .gather import Gathered
from .session import Session

FEW = 8                                            # runs; of real prompts, one layer's inputs differ up to 16 times between calls
SETTLED = 0.05                                     # a twentieth of the margin
QUARTERS = 4                                       # runs at least, for a last quarter of them
PAIR = {"high_noise": "low_noise", "low_noise": "high_noise"}


def about(session: Session, gathered: Mapping[str, Gathered], found: Mapping[str, ByPass],
          known: Collection[str] = ()) -> list[str]:
    """Lines on a session and every expert of it. gathered, found: role -> what it recorded; known: roles that are not missed, as
    a log stands for them, or the model has none."""
    lines = [f"session {session.name}: {notice}" for notice in session.notices()]
    for role, each in gathered.items():
        lines += [f"{role}: {line}" for line in (_recorded(each), *_gaps(each, found[role]), *_rise(found[role]))]
    alone = [role for role in gathered if role in PAIR and PAIR[role] not in {*gathered, *known}]
    return lines + [f"{PAIR[role]}: nothing was recorded, so the session is one-sided; connect that expert to Calibrate too, "
                    f"unless {role} is all you save" for role in alone]


def joined(lines: Iterable[str]) -> list[str]:
    """`high_noise: so` and `low_noise: so` as one line of both, at the place of the first."""
    lines = list(dict.fromkeys(lines))
    found = []
    for line in lines:
        role, colon, text = line.partition(": ")
        twin = f"{PAIR[role]}: {text}" if colon and role in PAIR else None
        if twin not in lines:
            found.append(line)
        elif lines.index(line) < lines.index(twin):
            found.append(f"{' and '.join(PAIR)}: {text}")
    return found


def _recorded(gathered: Gathered) -> str:
    parts = Counter(call.part for _, _, call in gathered.calls)
    sigmas = [call.sigma for _, _, call in gathered.calls]
    prompts = len({run.facts.prompt_id or run.folder for run in gathered.runs})
    calls = " and ".join(f"{count} {part}" for part, count in parts.items())
    weights = " and ".join(dict.fromkeys(run.subject.stored_as or "unknown" for run in gathered.runs))
    return (f"{len(gathered.runs)} runs of {prompts} prompts, {calls} calls, sigma {max(sigmas):.3g} to {min(sigmas):.3g}, "
            f"{len(gathered.layers())} layers; recorded on {weights} weights")


def _gaps(gathered: Gathered, found: ByPass) -> list[str]:
    """What is missing, one line each."""
    lines = []
    if len(gathered.runs) < FEW:
        lines.append(f"fewer than {FEW} runs: rare large inputs may not have come yet; queue more prompts, or keep a multiplier of "
                     f"{MARGIN:g}")
    if {call.part for _, _, call in gathered.calls} == {"cond"}:
        lines.append("only cond was seen (cfg 1, as with a distillation LoRA): sampling with a negative prompt has other inputs")
    unseen = [layer for layer, values in found.amax.items() if np.isnan(values).all() and layer not in found.left_out]
    if unseen:
        lines.append(f"{len(unseen)} layers saw no input and get no scale: {some(unseen)}")
    if found.left_out:
        lines.append(f"{max(found.left_out.values())} inputs at most were not finite and are left out, in {len(found.left_out)} "
                     f"layers: {some(found.left_out)}; the model overflows where its precision is too small")
    return lines


def _rise(found: ByPass) -> list[str]:
    """How far the largest input rose in the last quarter of the runs."""
    numbers = list(dict.fromkeys(found.runs.tolist()))
    if len(numbers) < QUARTERS:
        return [f"whether amax has settled can be told from {QUARTERS} runs on"]
    is_late = np.isin(found.runs, numbers[-(len(numbers) // QUARTERS):])
    rises = rise_of(found, is_late)
    if not rises:
        return []
    worst = max(rises, key=rises.get)
    more = [layer for layer, rise in rises.items() if rise > SETTLED]
    said = f"in the last quarter of the runs the largest input rose by {max(rises[worst], 0.0):.1%} at most ({worst})"
    if not more:
        return [f"amax has settled: {said}"]
    return [f"amax still rises: {said}, in {len(more)} of {len(rises)} layers by more than {SETTLED:.0%}; queue more prompts"]


def rise_of(found: ByPass, is_late: np.ndarray) -> dict[str, float]:
    """Layer -> rise, of layers that were seen before and late. is_late: (passes,), bool: those of the last quarter."""
    rises = {}
    for layer, values in found.amax.items():
        seen = ~np.isnan(values)
        before, late = values[seen & ~is_late], values[seen & is_late]
        if len(before) and len(late) and before.max() > 0.0:
            rises[layer] = max(float(late.max() / before.max()) - 1.0, 0.0)
    return rises
