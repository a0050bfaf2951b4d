"""What one finished output says of its own quality: error by format and by layer, and how much of the merge it kept.

Figures come from the sixteen sampled rows of each tensor (sample.py, survival.py); sums are weighted by energy, so that the figure
of a format is that of all its layers together.
"""
from collections import defaultdict

from ..precision import GGUF, layer_of
from .experts import ExpertPlan
from .file_plan import OutputPlan
from .sample import Sample
from .survival import Survival
from .survival import tell as told_of

WORST = 12                                         # layers named in a report
LOST = 0.5                                         # error over which a layer is no longer what it was; no format comes near


def tell(out: OutputPlan, expert: ExpertPlan, rows: dict[str, dict]) -> dict:
    """"formats": by format, layers and error; "layers": [layer, format, error], in the order of the model; "survival": of the merge
    in all and by layer, None where nothing merged is quantized; "stochastic": keys rounded so; "subnormal": float16 values that
    kept fewer bits than a normal one has; "lost": layers whose weights are too small for their format; "encoder": of a GGUF;
    "weighed": layers whose columns an imatrix weighs.

    rows: key -> report row with "sample" and, where merged, "survival".
    """
    names = {key: name for key, spec in expert.specs.items() if (name := out.forms.name(key, spec))}
    sums: dict[str, Sample] = defaultdict(Sample)
    for key, name in names.items():
        sums[name] += Sample(**rows[key]["sample"])
    counts = {name: sum(each == name for each in names.values()) for name in sums}
    layers = [[layer_of(key), name, Sample(**rows[key]["sample"]).error] for key, name in names.items()]
    lost = [layer for layer, _, error in layers if error > LOST]
    return {"formats": {name: {"layers": counts[name], "error": sums[name].error} for name in sums}, "layers": layers,
            "survival": _survival({key: rows[key]["survival"] for key in names if "survival" in rows[key]}),
            "stochastic": len(out.noisy), "subnormal": sum(row.get("subnormal", 0) for row in rows.values()), "lost": lost,
            **({"encoder": out.forms.options.backend} if out.forms.container == GGUF else {}), "weighed": len(out.importance)}


def _survival(found: dict[str, dict]) -> dict | None:
    sums = {layer_of(key): Survival(**each) for key, each in found.items()}
    told = {layer: figures for layer, each in sums.items() if (figures := told_of(each))}
    whole = told_of(sum(sums.values(), Survival()))
    if whole is None:
        return None
    effects = {layer: each["effect_over_noise"] for layer, each in told.items() if each["effect_over_noise"] is not None}
    least = sorted(effects, key=effects.get)[:WORST]
    return {**whole, "layers": told, "least": [[layer, effects[layer]] for layer in least],
            "drowned": sum(effect < 1.0 for effect in effects.values())}
