"""What a quantized base costs the LoRAs that are merged onto it, told before the run.

A delta smaller than the base's own steps is rounded away again when the sum goes back onto a like grid: to nearest, 0.4 % of it
survives on NVFP4, 13 to 98 % on FP8, by size. Figures are of these LoRAs on this base, from 256 rows of up to sixteen layers.
A quantized base without LoRAs is merely stored in another format, and nothing is said of it.
"""
from collections.abc import Iterable

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
    grids = expert.source.formats
    merged = [key for key in expert.specs if key in grids and key in expert.contributions]
    outputs = [out for out in expert.outputs if any(out.forms.name(key, expert.specs[key]) for key in merged)]
    if not outputs:
        return []
    layers = [layer_of(key) for key in merged[::-(-len(merged) // LAYERS)]]
    lines = []
    for out in outputs:
        names = tuple(dict.fromkeys(name for key in merged if (name := out.forms.name(key, expert.specs[key]))))
        asked = [Wanted((*names, KEEP), out.forms.options, rounding) for rounding in (NEAREST, STOCHASTIC)]
        nearest, noisy = (measure(expert, each, ride, layers) for each in asked)
        lines.append(_line(expert, out, [_kept(nearest.values(), names), _kept(noisy.values(), names),
                                         _kept(nearest.values(), (KEEP,))]))
    return [line for line in lines if line]


def _kept(trials: Iterable[Trial], names: tuple[str, ...]) -> dict | None:
    """Figures of all tried layers together, each in the first of these formats that was tried on it."""
    sums = [Survival(**each.survival[name]) for each in trials for name in names[:1] if name in each.survival]
    return tell(sum(sums, Survival()))


def _line(expert: ExpertPlan, out, kept: list[dict | None]) -> str | None:
    nearest, noisy, plain = kept
    if nearest is None:
        return None
    where = f"{expert.role}: " if expert.role != "model" else ""
    said = (f"{where}the base is {expert.source.lossy}: of what is merged onto it, {out.label} keeps {nearest['projection']:.1%} "
            f"(± {nearest['standard_error']:.1%}) rounded to nearest")
    if out.noisy and noisy is not None:
        said += f", and {noisy['projection']:.0%} (± {noisy['standard_error']:.0%}) rounded stochastically, as is done here, " \
                "with 1.4 times the rounding error"
    elif nearest["projection"] < LOST:
        said = f"warning: {said}: most of the merge is rounded away"
    return said + f"; bf16 keeps {plain['projection']:.0%}, and so does any format from the bf16 or fp16 file of this model"
