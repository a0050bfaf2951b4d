"""How sensitive each layer is, measured on a session: output errors by format, layers for full precision, weights for the searches.

A pass of trial.py over every block linear of the merge, with the session's inputs. What follows from it, per expert:
    <role>_sensitivity.json    every layer's errors, in the original's schema and beyond it
    <role>_imatrix.gguf        Σ x² and count of ALL recorded inputs, of the layers where weighing made the held-out error smaller
A layer where it did not has no entry there, and is quantized as without a calibration. Where no format that is asked for searches,
PROBE is tried besides, so that weights for other formats are there.
"""
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ...quant.formats import QUANTIZED_FORMS, form_of, weighs
from ..calibration import sensitivity_json
from ..calibration.layer_errors import LayerErrors, spoiled
from ..calibration.layer_inputs import Inputs
from ..calibration.sensitivity_json import WEIGHTS, Sensitivity, path_of
from ..calibration.subject import sample_digest
from ..imatrix_writer import Sum, write_imatrix
from ..open_file import naming
from ..plans import cards
from ..plans.plan import KEEP
from ..progress import Clock, Progress, silent
from .carry import Ride
from .experts import ExpertPlan
from .plan import Plan
from .solve_budget import GGUF_CANDIDATES, gguf_candidates
from .trial import Wanted, measure, readings

CARDS_OWN, ALL, GGUFS = "this card's", "all", "gguf"
FORMATS = (CARDS_OWN, ALL, GGUFS)                  # what can be asked for
PROBE = ("nvfp4", "Q4_K")                          # whose searches tell whether weighing helps, where nobody else's does
NARROWEST = ("nvfp4", "float8_e4m3fn", "mxfp8")    # formats that heed full precision, by how much they round an input


def wanted(expert: ExpertPlan, which: str, card: str, inputs: Inputs) -> Wanted:
    """What to try for one of FORMATS. Names and card are a size budget's, so that its trial is this one, from the cache."""
    if which == ALL:
        names = (*(name for name in QUANTIZED_FORMS if name != "float8_e5m2"), *GGUF_CANDIDATES)
        return Wanted(names, inputs=replace(inputs, card=None))
    names = gguf_candidates(expert) if which == GGUFS else cards.native_formats(card)
    return Wanted((*sorted(names), KEEP), inputs=replace(inputs, card=None if which == GGUFS else card))


@dataclass(frozen=True)
class Assessed:
    """One expert. layers: None for one that the session has not seen, in the model's order; inputs: it was measured on."""

    role: str
    layers: Mapping[str, LayerErrors | None]
    inputs: Inputs

    @property
    def seen(self) -> dict[str, LayerErrors]:
        return {layer: found for layer, found in self.layers.items() if found is not None}

    @property
    def weighed(self) -> list[str]:
        """Layers where weighing columns helps."""
        return [layer for layer, found in self.seen.items() if found.weighing_helps]

    @property
    def narrowest(self) -> str | None:
        """Of the tried formats that heed full precision, the one that rounds inputs most; None where none rounds any."""
        tried = {name for found in self.seen.values() for name, errors in found.formats.items() if errors.rounded is not None}
        return next((name for name in NARROWEST if name in tried), None)

    @property
    def spoiled(self) -> list[str]:
        """Layers that belong into 16 bit when they are stored in the narrowest format."""
        name = self.narrowest
        return [layer for layer, found in self.seen.items() if name in found.formats and spoiled(found.formats[name], name)]

    def notices(self) -> list[str]:
        """What was not measured, or is not used, in words."""
        blind = [layer for layer, found in self.layers.items() if found is None]
        tried = [found.gain for found in self.seen.values() if found.gain is not None]
        idle = len(tried) - len(self.weighed)
        said = [f"{len(blind)} of {len(self.layers)} layers were not seen in both halves of the session, as {blind[0]}: nothing is "
                "known of their inputs"] if blind else []
        return said + ([f"in {idle} of {len(tried)} layers weighing columns does not help on held-out tokens: it is not used "
                        "there"] if idle else [])


def assess(plan: Plan, asked: Mapping[str, Wanted], *, reports: Path, should_stop: Callable[[], bool] = bool,
           on_progress: Callable[[Progress], None] = silent) -> list[Assessed]:
    """Every expert of `plan` that is asked for. asked: role -> what to try, with inputs.

    Raises Stopped, SourceError, LoraError, TensorError.
    """
    experts = [expert for expert in plan.experts if expert.role in asked]
    passes = {expert.role: _passes(asked[expert.role]) for expert in experts}
    total = sum(len(passes[expert.role]) * readings(expert, Path(reports), expert.block_linears) for expert in experts)
    ride = Ride(plan.device, Clock(total, on_progress), should_stop, Path(reports))
    found = []
    for expert in experts:
        trials = [measure(expert, each, ride) for each in passes[expert.role]]
        layers = {layer: _together([each[layer].outputs for each in trials]) for layer in trials[0]}
        found.append(Assessed(expert.role, layers, asked[expert.role].inputs))
    return found


def _passes(wish: Wanted) -> list[Wanted]:
    """What is asked for, and PROBE where none of it searches."""
    searches = any(weighs(form_of(name, wish.options)) for name in wish.candidates if name != KEEP)
    return [wish] if searches else [wish, replace(wish, candidates=PROBE)]


def _together(found: list[LayerErrors | None]) -> LayerErrors | None:
    """All formats of one layer. A layer that was seen in one trial was in all of them."""
    seen = [each for each in found if each is not None]
    return replace(seen[0], formats={name: errors for each in seen for name, errors in each.formats.items()}) if seen else None


def save(assessed: Assessed, folder: str | os.PathLike, expert: ExpertPlan) -> list[str]:
    """Write both files of an expert into the session's folder; their paths. Without a layer that weighing helps, an older imatrix
    is taken away. Raises PlanError."""
    weighed, inputs, paths = assessed.weighed, assessed.inputs, []
    path = path_of(folder, assessed.role, WEIGHTS)
    if weighed:
        sums = {}
        for layer in weighed:
            mean, count = inputs.gathered.columns(layer)
            sums[f"{layer}.weight"] = Sum(mean * count, count)
        paths.append(write_imatrix(path, sums, datasets=[inputs.session or "calibration"]))
    elif os.path.exists(path):
        with naming(path, "taken away", "check the rights of the folder"):
            os.remove(path)
    said = Sensitivity(f"{expert.source.name}", expert.variant.task, inputs.prompts, inputs.session, inputs.gathered.state,
                       inputs.margin, len(weighed), sample_digest(getattr(expert.source, "base", expert.source)),
                       tuple(assessed.notices()))
    return [*paths, sensitivity_json.write(folder, assessed.role, said, assessed.layers)]
