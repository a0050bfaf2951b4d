"""A precision plan that rests on a measurement: a size budget solved, layers raised in which the LoRAs would drown.

plans/build.py makes what headers can tell; trial.py tries formats on rows of the merge; budget.py and promote.py decide, here, for
each expert of a job. Presets, maps and lists alone need no measurement, and none is made for them.
"""
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from ...quant.formats import DEFAULT, FORMATS, Options, form_of
from ..plans import budget, cards, promote, shares, sizes
from ..plans.build import build, finish
from ..plans.moves import TO_SOLVE
from ..plans.plan import KEEP, Choice, PrecisionPlan
from ..plans.request import PlanRequest
from ..precision import KINDS, Forms, layer_of
from ..progress import Clock, Progress, silent
from .carry import Ride
from .experts import ExpertPlan
from .plan import Plan
from .trial import Trial, Wanted, measure

EIGHT_OF = {"rtx50": "mxfp8"}                      # what 4-bit layers are raised to; int8 on every other card


@dataclass(frozen=True)
class Solved:
    """A plan, and what was measured for it by role: layer -> trial; empty where nothing had to be."""

    plan: PrecisionPlan
    trials: dict[str, dict[str, Trial]]


def solve(plan: Plan, request: PlanRequest, *, reports: Path, options: Options = DEFAULT, should_stop: Callable[[], bool] = bool,
          on_progress: Callable[[Progress], None] = silent) -> Solved:
    """The precision plan of a request for the experts of `plan`.

    Raises RecipeError, SourceError, HeaderError for what the request names; PlanError for a budget that cannot be met; Stopped.
    """
    made = build({expert.role: expert.specs for expert in plan.experts}, request)
    experts, trials, notices = {}, {}, list(made.notices)
    for expert in plan.experts:
        choices = made.experts[expert.role]
        wanted = _candidates(choices, request)
        if wanted:
            clock = Clock(1, on_progress)
            ride = Ride(plan.device, clock, should_stop, Path(reports))
            trials[expert.role] = measure(expert, Wanted(wanted, options), ride)
            choices, told = _decide(expert, choices, trials[expert.role], request, options)
            if request.budget_gb:
                choices, more = finish(choices, expert.specs, expert.role, request)
                told += more
            notices += [f"{expert.role}: {each}" for each in told]
        experts[expert.role] = choices
    return Solved(replace(made, experts=experts, notices=tuple(dict.fromkeys(notices))), trials)


def _candidates(choices: dict[str, Choice], request: PlanRequest) -> tuple[str, ...]:
    """Formats that have to be tried for what is asked; none where headers were enough."""
    eight = EIGHT_OF.get(request.card, "int8_tensorwise")
    forms = {choice.format for choice in choices.values()}
    if request.budget_gb:
        forms |= {*cards.native_formats(request.card), KEEP}
    elif request.promote_below is None:
        return ()
    return tuple(dict.fromkeys([*promote.wanted(forms, eight), KEEP]))


def _decide(expert: ExpertPlan, choices: dict[str, Choice], trials: dict[str, Trial], request: PlanRequest,
            options: Options) -> tuple[dict[str, Choice], list[str]]:
    effects = {layer: trial.effects() for layer, trial in trials.items()}
    if request.budget_gb:
        return _solve_budget(expert, choices, trials, request, options)
    return promote.promote(choices, effects, request.promote_below, EIGHT_OF.get(request.card, "int8_tensorwise"))


def _solve_budget(expert: ExpertPlan, choices: dict[str, Choice], trials: dict[str, Trial], request: PlanRequest,
                  options: Options) -> tuple[dict[str, Choice], list[str]]:
    """Choices of the layers that nothing else decided, within the budget of one file."""
    names, free = (*cards.native_formats(request.card), KEEP), {layer for layer, each in choices.items() if each.reason == TO_SOLVE}
    counts = shares.multiply_adds(expert.specs)
    bytes_of = byte_counts(expert, names, request.kept_dtype or "source", options)
    layers = {layer: budget.Candidates({name: (bytes_of[layer][name], trials[layer].lost[name])
                                        for name in _allowed(trials[layer], names, request) if name in bytes_of[layer]},
                                       trials[layer].energy, multiply_adds=counts[layer]) for layer in choices if layer in free}
    fixed = predicted(expert, {layer: each for layer, each in choices.items() if layer not in free}, request.kept_dtype or "source",
                      None, options) - sum(bytes_of[layer][KEEP] for layer in free)
    fast = frozenset(cards.native_formats(request.card))
    found = budget.solve(layers, round(request.budget_gb * 1e9), fixed_bytes=fixed, minimum_fast=request.minimum_fast, fast=fast)
    reason = f"least error within {request.budget_gb:g} GB"
    solved = {layer: Choice(found.choices[layer], reason=reason) if layer in free else each for layer, each in choices.items()}
    return solved, [f"{request.budget_gb:g} GB: total error {found.error ** 0.5:.4f}, {found.bytes / 1e9:.2f} GB", *found.notices]


def _allowed(trial: Trial, names: tuple[str, ...], request: PlanRequest) -> list[str]:
    """Formats in which the LoRAs do not drown; all where nothing is asked of them. KEEP always is."""
    effects = trial.effects()
    least = request.promote_below or 0.0
    return [name for name in names if name == KEEP or effects.get(name, least) >= least]


def byte_counts(expert: ExpertPlan, names: tuple[str, ...], kept: str, options: Options) -> dict[str, dict[str, int]]:
    """Layer -> format -> bytes of every block linear, KEEP as `kept` has it."""
    forms = {name: form_of(name, options) for name in names if name != KEEP}
    plain = Forms(next(iter(FORMATS)), {}, kept=kept)

    def kept_bytes(key: str) -> int:
        keeping = replace(plain, layers={layer_of(key): KEEP})
        return sum(spec.nbytes for spec in keeping.outputs(key, expert.specs[key]).values())

    return sizes.candidate_bytes(expert.specs, names, forms, kept_bytes)


def predicted(expert: ExpertPlan, choices: dict[str, Choice], kept: str, fp32_names: frozenset[str] | None,
              options: Options) -> int:
    """Bytes of one expert's file under these choices, but its header; a layer without one is kept."""
    named = {layer: choices.get(layer, Choice(KEEP)).format for layer in map(layer_of, expert.block_linears)}
    forms = Forms(next(iter(FORMATS)), named, kept=kept, fp32_names=fp32_names, options=options)
    return sum(stored.nbytes for key, spec in expert.specs.items() for stored in forms.outputs(key, spec).values())


def error_of(choices: dict[str, Choice], trials: dict[str, Trial]) -> float | None:
    """Relative error of all block linears under these choices; None where a choice was not tried."""
    if not trials or any(choice.format not in trials[layer].lost for layer, choice in choices.items()):
        return None
    energy = sum(trials[layer].energy for layer in choices)
    return (sum(trials[layer].lost[choice.format] for layer, choice in choices.items()) / energy) ** 0.5 if energy else 0.0


def picture(choices: dict[str, Choice]) -> dict:
    """{"kinds": [layer within its block], "cells": [[format of each kind] per block]} for web/plan.js; None where there is none."""
    place = {layer: layer.split(".", 2) for layer in choices if layer.startswith("blocks.")}
    kinds = sorted({kind for _, _, kind in place.values()}, key=lambda kind: (KINDS.index(kind.split(".")[0]), kind))
    blocks = 1 + max((int(number) for _, number, _ in place.values()), default=-1)
    cells = [[_cell(choices.get(f"blocks.{number}.{kind}")) for kind in kinds] for number in range(blocks)]
    return {"kinds": kinds, "cells": cells}


def _cell(choice: Choice | None) -> str | None:
    return None if choice is None else choice.format + (" 16-bit" if choice.full_precision and choice.format != KEEP else "")
