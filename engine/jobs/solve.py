"""A precision plan that rests on a measurement: a size budget solved, layers raised in which the LoRAs would drown, layers spared
whose inputs cannot be rounded.

plans/build.py makes what headers can tell; trial.py tries formats on rows of the merge, and with a calibration on what the model
really multiplies them with; budget.py, promote.py and layer_cost.py decide, here, for each expert of a job. Presets, maps and lists
alone need no measurement, and none is made for them.
"""
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..calibration.layer_inputs import Inputs
from ..errors import PlanError
from ..plans import cards, promote
from ..plans.build import build, finish
from ..plans.moves import TO_SOLVE
from ..plans.plan import KEEP, Choice, PrecisionPlan
from ..plans.request import PlanRequest
from ..precision import GGUF, KINDS
from ..progress import Clock, Progress, silent
from .carry import Ride
from .experts import ExpertPlan
from .layer_cost import error_of, spare
from .plan import Plan
from .solve_budget import byte_counts, candidates, predicted, solve_budget
from .trial import Trial, Wanted, measure, readings

LINEARS = ("q", "k", "v", "o", "k_img", "v_img", "0", "2")   # of each kind, as comfy/ldm/wan/model.py makes them
__all__ = ["Solved", "byte_counts", "error_of", "picture", "predicted", "solve"]


def eight_bits(request: PlanRequest) -> str:
    """What narrower layers are raised to: MXFP8 on a card where it is native, INT8 on every other, Q8_0 in a GGUF."""
    if request.container == GGUF:
        return "Q8_0"
    return "mxfp8" if "mxfp8" in cards.native_formats(request.card) else "int8_tensorwise"


@dataclass(frozen=True)
class Solved:
    """A plan, and what was measured for it by role: layer -> trial; empty where nothing had to be."""

    plan: PrecisionPlan
    trials: dict[str, dict[str, Trial]]


def solve(plan: Plan, request: PlanRequest, *, reports: Path, calibration: Mapping[str, Inputs] | None = None,
          should_stop: Callable[[], bool] = bool, on_progress: Callable[[Progress], None] = silent) -> Solved:
    """The precision plan of a request for the experts of `plan`; formats with a choice of search are tried in their default one.

    calibration: inputs by role: then errors are those of outputs; None changes nothing. Raises RecipeError, SourceError and
    HeaderError for what the request names; PlanError for a budget that cannot be met, or a missing calibration; Stopped.
    """
    inputs = {role: replace(each, card=_card(request)) for role, each in (calibration or {}).items()}
    _check_calibration(request, inputs)
    made = build({expert.role: expert.specs for expert in plan.experts}, request)
    experts, trials, notices = {}, {}, list(made.notices)
    asked = {expert.role: _candidates(expert, made.experts[expert.role], request) for expert in plan.experts}
    total = sum(readings(expert, Path(reports), expert.block_linears) for expert in plan.experts if asked[expert.role])
    ride = Ride(plan.device, Clock(total, on_progress), should_stop, Path(reports))
    for expert in plan.experts:
        choices, wanted = made.experts[expert.role], asked[expert.role]
        if wanted:
            trials[expert.role] = measure(expert, Wanted(wanted, inputs=inputs.get(expert.role)), ride)
            choices, told = _decide(expert, choices, trials[expert.role], (made, request))
            notices += [f"{expert.role}: {each}" for each in told]
        experts[expert.role] = choices
        if inputs:
            notices.append(f"{expert.role}: {_seen(inputs.get(expert.role), trials.get(expert.role))}")
    return Solved(replace(made, experts=experts, notices=tuple(dict.fromkeys(notices))), trials)


def _card(request: PlanRequest) -> str | None:
    """On which card inputs are rounded: a budget's; else each format's own, as the plan may be for another machine."""
    return request.card if request.budget_gb and request.container != GGUF else None


def _check_calibration(request: PlanRequest, inputs: Mapping[str, Inputs]) -> None:
    """Raise PlanError where the request needs a calibration and none is given."""
    if request.full_precision_above is not None and request.container != GGUF and not inputs:
        raise PlanError("precision plan: full precision where inputs cannot be rounded: expected a calibration, found none; "
                        "connect one, or switch it off")


def _seen(inputs: Inputs | None, trials: dict[str, Trial] | None) -> str:
    """A notice of what a calibration did for an expert."""
    if inputs is None:
        return "the calibration has no run of this expert: its layers count by their weights"
    named = f"calibration {inputs.session} of {inputs.prompts} prompts"
    if trials is None:
        return f"{named}: changes nothing here, as nothing has to be measured for this plan"
    seen = sum(trial.outputs is not None for trial in trials.values())
    said = f"{named}: {seen} layers by the error of their output"
    if any(trial.outputs is not None and trial.outputs.weighing_helps for trial in trials.values()):
        said += ", weighed columns included: connect the calibration to Quantize, too"
    return f"{said}, {len(trials) - seen} that it did not see by that of their weights" if seen < len(trials) else said


def _candidates(expert: ExpertPlan, choices: dict[str, Choice], request: PlanRequest) -> tuple[str, ...]:
    """Formats that have to be tried for what is asked; none where headers were enough."""
    eight = eight_bits(request)
    forms = {choice.format for choice in choices.values()}
    if request.budget_gb:
        forms |= {*candidates(expert, request), KEEP}
    elif request.promote_below is None and (request.full_precision_above is None or request.container == GGUF):
        return ()
    return tuple(dict.fromkeys([*promote.wanted(forms, eight), KEEP]))


def _decide(expert: ExpertPlan, choices: dict[str, Choice], trials: dict[str, Trial],
            made: tuple[PrecisionPlan, PlanRequest]) -> tuple[dict[str, Choice], list[str]]:
    """What the measurement decides of one expert. made: the plan from headers, and what was asked."""
    plan, request = made
    effects, eight, told = {layer: trial.effects() for layer, trial in trials.items()}, eight_bits(request), []
    if request.promote_below is not None:          # of a budget, the layers that it does not decide
        decided = {layer: each for layer, each in choices.items() if each.reason != TO_SOLVE}
        raised, told = promote.promote(decided, effects, request.promote_below, eight)
        choices = {**choices, **raised}
    if request.budget_gb:
        choices, more = solve_budget(expert, choices, trials, (plan.kept_dtype, request))
        choices, last = finish(choices, expert.specs, expert.role, request)
        told = told + more + last
    choices, spared = spare(choices, trials, request.full_precision_above)
    return choices, told + spared


def picture(choices: dict[str, Choice]) -> dict:
    """{"kinds": [layer within its block], "cells": [[format of each kind] per block]} for web/plan.js; None where there is none."""
    place = {layer: layer.split(".", 2) for layer in choices if layer.startswith("blocks.")}
    kinds = sorted({kind for _, _, kind in place.values()}, key=_in_block)
    blocks = 1 + max((int(number) for _, number, _ in place.values()), default=-1)
    cells = [[_cell(choices.get(f"blocks.{number}.{kind}")) for kind in kinds] for number in range(blocks)]
    return {"kinds": kinds, "cells": cells}


def _in_block(kind: str) -> tuple[int, int]:
    """Where a block of the model has it: self-attention first, and there q, k, v, o."""
    part, name = kind.split(".")
    return KINDS.index(part), LINEARS.index(name)


def _cell(choice: Choice | None) -> str | None:
    return None if choice is None else choice.format + (" 16-bit" if choice.full_precision and choice.format != KEEP else "")
