"""What a quantized base costs the LoRAs that are merged onto it, told before the run.

A delta smaller than the base's own steps is rounded away again when the sum goes back onto a like grid: to nearest, 0.4 % of it
survives on NVFP4, 13 to 98 % on FP8, by size. Figures are of these LoRAs on this base, from 256 rows of up to sixteen layers.
A quantized base without LoRAs is merely stored in another format, and nothing is said of it.
"""
import math

from ..merging.adaptive.store import wanted as unmeasured
from ..precision import KEEP, layer_of
from .carry import Ride
from .experts import ExpertPlan
from .survival import Survival, tell
from .trial import NEAREST, STOCHASTIC, Trial, Wanted, measure

LAYERS = 16
LOST = 0.5                                         # under this the wrong order of work has undone most of the merge


def grade(expert: ExpertPlan, ride: Ride) -> list[str]:
    """A line for each output that quantizes what was merged onto a quantized tensor, and what would keep more of it.

    Raises what `trial.measure` raises.
    """
    grids, lines = expert.source.formats, []
    merged = [key for key in expert.specs if key in grids and key in expert.contributions]
    for out in expert.outputs:
        names = {layer_of(key): name for key in merged if (name := out.forms.name(key, expert.specs[key]))}
        names = dict(list(names.items())[::-(-len(names) // LAYERS) or 1])
        if not names:
            continue
        if unmeasured(expert, ride.reports):       # it would take a reading of the whole base
            lines.append(f"{_opening(expert)}: how much of what is merged onto it {out.label} keeps is told when adaptive "
                         "injection has been measured, by the stability meter or the run")
            continue
        asked = [Wanted((*dict.fromkeys(names.values()), KEEP), out.forms.options, rounding) for rounding in (NEAREST, STOCHASTIC)]
        nearest, noisy = (measure(expert, each, ride, names) for each in asked)
        cost = math.sqrt(_lost(noisy, names) / _lost(nearest, names)) if _lost(nearest, names) else 1.0
        told = [_kept(nearest, names), _kept(noisy, names), _kept(nearest, dict.fromkeys(names, KEEP))]
        lines.append(_line(expert, out, told, cost))
    return [line for line in lines if line]


def _opening(expert: ExpertPlan) -> str:
    return (f"{expert.role}: " if expert.role != "model" else "") + f"the base is {expert.source.lossy}"


def _kept(trials: dict[str, Trial], formats: dict[str, str]) -> dict | None:
    """Figures of all tried layers together, each in its format."""
    sums = [Survival(**trials[layer].survival[name]) for layer, name in formats.items() if name in trials[layer].survival]
    return tell(sum(sums, Survival()))


def _lost(trials: dict[str, Trial], formats: dict[str, str]) -> float:
    return math.fsum(trials[layer].lost[name] for layer, name in formats.items())


def _line(expert: ExpertPlan, out, kept: list[dict | None], cost: float) -> str | None:
    """kept: rounded to nearest, stochastically, and as bf16; cost: stochastic over nearest error."""
    nearest, noisy, plain = kept
    if nearest is None:
        return None
    said = (f"{_opening(expert)}: of what is merged onto it, {out.label} keeps {nearest['projection']:.1%} "
            f"(± {nearest['standard_error']:.1%}) rounded to nearest")
    if out.noisy and noisy is not None:
        said += f", and {noisy['projection']:.0%} (± {noisy['standard_error']:.0%}) rounded stochastically, as is done here, " \
                f"with {cost:.1f} times the rounding error"
    elif nearest["projection"] < LOST:
        said = f"warning: {said}: most of the merge is rounded away"
    return said + f"; saved as bf16 it is {plain['projection']:.0%}; the bf16 or fp16 file of this model loses nothing that way"
