"""What a choice costs a layer: of its weight, or, with a calibration, of its output. Both the budget and what is told rest on it.

    without    lost = ‖W' - Ŵ‖²                  energy = ‖W'‖²
    with       lost = (relative output error)²   energy = 1
The second counts every layer's relative error alike. Errors of layers that do not hang together add up in their squares; and what
follows a linear in a Wan block takes its size out: q and k go through an RMS norm, the sum of each branch through a LayerNorm, so
that an error of 1 % is one of 1 % after it, however large the output was. Where the card multiplies in the format, the error is
that of both factors rounded. Held against the exact derivative of the sampled latent by each of 240 weights of a trained tiny pair
of experts: the effect on the latent over this cost spreads by a factor of e^1.5, over the absolute output error by e^2.9. No kind
of layer stands out by more than 4; the first two blocks count 3 to 5 times as much as the rest, which is left to keep_edge_blocks.
"""
import math
from collections.abc import Mapping

from ..calibration.layer_errors import spoiled
from ..plans.moves import in_full_precision
from ..plans.plan import KEEP, Choice
from .tried import Trial

Trials = Mapping[str, Trial]                       # layer -> trial, of one expert


def by_output(trials: Trials) -> bool:
    """Whether a calibration has seen a layer of these: then costs are outputs'."""
    return any(trial.outputs is not None for trial in trials.values())


def cost(trial: Trial, choice: Choice, *, outputs: bool) -> tuple[float, float]:
    """(lost, energy) of a layer in a format that was tried. outputs: as `by_output` says of the expert; a layer that was not seen
    then counts with the relative error of its weight, which is that of its output for inputs without a pattern."""
    if not outputs:
        return trial.lost[choice.format], trial.energy
    if trial.outputs is None or choice.format not in trial.outputs.formats:
        return (trial.lost[choice.format] / trial.energy if trial.energy else 0.0), 1.0
    return trial.outputs.error(choice.format, full_precision=choice.full_precision) ** 2, 1.0


def error_of(choices: Mapping[str, Choice], trials: Trials) -> float | None:
    """Relative error of all block linears under these choices, of outputs where a calibration saw any; None where a choice was not
    tried."""
    if not trials or any(choice.format not in trials[layer].lost for layer, choice in choices.items()):
        return None
    outputs = by_output(trials)
    found = [cost(trials[layer], choice, outputs=outputs) for layer, choice in choices.items()]
    energy = math.fsum(each for _, each in found)
    return (math.fsum(lost for lost, _ in found) / energy) ** 0.5 if energy else 0.0


def is_spoiled(trial: Trial, form: str, factor: float | None) -> bool:
    """Whether the input's rounding spoils a layer in a format; factor: of W4A4 over W4A16 error, None: nothing is."""
    found = trial.outputs.formats.get(form) if factor is not None and trial.outputs is not None else None
    return found is not None and spoiled(found, form, factor)


def spare(choices: Mapping[str, Choice], trials: Trials, factor: float | None) -> tuple[dict[str, Choice], list[str]]:
    """(choices with products in 16 bit where the input's rounding would spoil them, notices)."""
    found = dict(choices)
    for layer, choice in choices.items():
        if choice.format != KEEP and layer in trials and is_spoiled(trials[layer], choice.format, factor):
            errors = trials[layer].outputs.formats[choice.format]
            why = f"output error {errors.rounded:.3f} with its input rounded, {errors.stored:.3f} without"
            found[layer] = in_full_precision(choice, why)
    count = sum(found[layer] != choice for layer, choice in choices.items())
    return found, [f"{count} layers are multiplied in 16 bit, as rounding their inputs would make their output error more "
                   f"than {factor:g} times as large"] if count else []
