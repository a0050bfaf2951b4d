"""One file of a plan: where its bytes lie, what its header says, and what makes it this file and no other."""
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

import torch

from ...quant.formats import FORMATS
from .. import precision
from ..errors import PlanError
from ..plans.cards import FLOATS
from ..precision import Forms
from ..recipes.recipe import Mix, Output, Pass, Recipe
from ..specs import TensorSpec
from ..version import ENGINE, MERGE
from . import layout, metadata
from .experts import ExpertPlan
from .targets import Target

FAST = "fast_uncalibrated"


@dataclass(frozen=True)
class OutputPlan:
    """One file to be written."""

    role: str
    format: str
    label: str                                     # tells it from the expert's other outputs: format, plan, suffix
    forms: Forms
    layout: layout.Layout
    target: Target
    job_id: str                                    # see `identify`
    wish: str
    sources: list[dict]
    noisy: frozenset[str] = frozenset()            # keys whose codes are rounded stochastically


def lay_out(recipe: Recipe, expert: ExpertPlan, output: Output, sha256: dict[str, str]) -> layout.Layout:
    """Every byte of one output, from the specs of its expert. sha256: path -> hash, of LoRAs and of a base where it is known.

    Raises PlanError for a tensor that its format cannot hold.
    """
    _check_layers(expert, output)
    forms, body, entries, scales = forms_of(expert, output), {}, {}, {}
    amax = output.input_amax.get(expert.role, {})
    for key in expert.order:
        spec = expert.specs[key]
        form, parts = forms.of(key, spec), forms.outputs(key, spec)
        body |= {key + suffix: stored for suffix, stored in parts.items() if suffix not in form.CONSTANTS}
        if forms.name(key, spec) is not None:
            layer, scale = precision.layer_of(key), input_scale(forms, key, spec, amax)
            slow = forms.is_full_precision(key) and form.NAME in FLOATS
            entries[layer + ".comfy_quant"] = form.comfy_quant(full_precision=slow)
            scales |= {key + suffix: parts[suffix] for suffix in form.CONSTANTS}
            if scale is not None:
                scales[layer + ".input_scale"] = _float32(scale)
    return layout.place(body, entries, scales, _metadata(recipe, expert, output, sha256))


def _check_layers(expert: ExpertPlan, output: Output) -> None:
    """Raise PlanError for a layer that this expert does not have, or a plan that says nothing of it: of another model, most
    likely."""
    linears, role = {precision.layer_of(key) for key in expert.block_linears}, expert.role
    for name in ("layers", "full_precision", "input_amax"):
        found = getattr(output, name)
        strange = [layer for layer in found.get(role, ()) if layer not in linears]
        if strange:
            more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
            raise PlanError(f"{expert.source.name}: {output.label}: {name}: expected linears of this model's blocks, found "
                            f"{strange[0]}{more}; make the plan or scales of this model")
    if output.plan and role not in output.layers:
        raise PlanError(f"{expert.source.name}: {output.label}: expected the plan to name {role}, found "
                        f"{' and '.join(output.layers) or 'no expert'}; make a plan for {role} too, or leave it out of this output")


# The format for which ComfyUI takes an input scale of 1.0 in silence where there is none (comfy/quant_ops.py): it is written out.
SCALE_OF_ONE = "float8_e4m3fn"
# CUDA has no product of two E5M2 matrices, and ComfyUI would quantize the input to E5M2 too: such a file would stop at its first
# step, so its layers are always multiplied in 16 bit.
SLOW = "float8_e5m2"
# Formats whose grid holds every point of a base's: its own, and what has more bits of mantissa at scales a power of two apart.
ON_ITS_GRID = {"float8_e5m2": {"float8_e5m2", "float8_e4m3fn"}}


# Formats whose product takes a stored input scale.
SCALED = frozenset(name for name, form in FORMATS.items() if form.INPUT_AMAX is not None and name != SLOW)


def input_scale(forms: Forms, key: str, spec: TensorSpec, amax: Mapping[str, float]) -> float | None:
    """`input_scale` of the layer of a weight, a float32; None: none is stored. amax: layer -> largest activation."""
    form, layer = forms.of(key, spec), precision.layer_of(key)
    if forms.name(key, spec) is None or form.NAME not in SCALED:
        return None
    if layer in amax:
        return torch.tensor(amax[layer] / form.INPUT_AMAX, dtype=torch.float32).item()
    return 1.0 if form.NAME == SCALE_OF_ONE and not forms.is_full_precision(key) else None


def forms_of(expert: ExpertPlan, output: Output) -> Forms:
    """What each tensor of this expert is stored as. A quantized layer without an input scale follows `activations`."""
    forms, scaled = output.forms(expert.role), output.input_amax.get(expert.role, {})
    names = {key: name for key, spec in expert.specs.items() if (name := forms.name(key, spec))}
    slow = {precision.layer_of(key) for key, name in names.items()
            if name == SLOW or (output.activations != FAST and not (
                precision.layer_of(key) in scaled and forms.of(key, expert.specs[key]).INPUT_AMAX))}
    return replace(forms, full_precision=forms.full_precision | slow)


def noisy_keys(expert: ExpertPlan, output: Output) -> frozenset[str]:
    """Keys whose codes are rounded stochastically: a delta was added to a weight that lies on the output's own grid already, where
    rounding to nearest would put most of it back. Anywhere else nearest loses nothing of it, at a smaller error."""
    grids, forms = expert.source.formats, output.forms(expert.role)
    if output.rounding != "auto":
        return frozenset()
    moved = {*expert.contributions, *expert.source.moved}
    names = {key: forms.name(key, expert.specs[key]) for key in moved if key in grids}
    return frozenset(key for key, name in names.items() if name in ON_ITS_GRID.get(grids[key], {grids[key]})
                     and forms.of(key, expert.specs[key]).STOCHASTIC)


def _float32(value: float) -> bytes:
    return torch.tensor([value], dtype=torch.float32).view(torch.uint8).numpy().tobytes()


def _metadata(recipe: Recipe, expert: ExpertPlan, output: Output, sha256: dict[str, str]) -> dict[str, str]:
    base, known = {"name": metadata.public_name(expert.source)}, sha256.get(expert.source.path)
    facts = {"task": expert.variant.task, "size": expert.size, "format": output.format, "label": output.label,
             "engine": ENGINE, "merge": MERGE,
             "base": {**base, "sha256": known} if known else base,
             "passes": metadata.describe_passes(recipe.passes, expert.role, sha256, names=recipe.save.lora_names)}
    return metadata.build(recipe, expert.role, facts, expert.source.metadata)


def identify(recipe: Recipe, expert: ExpertPlan, output: Output, sha256: dict[str, str],
             device: str) -> tuple[str, str, list[dict]]:
    """(job_id, wish, sources) of one output.

    wish: hash of what was asked of this expert as far as it decides the bytes: not the folder, the name, or the other half;
    sources: the files it was asked of; job_id: hash of the sources' content, the wish without paths, the header, and of what
    computes: equal ids, equal bytes. device: kind of what computes, cpu or cuda. A hash of the base that somebody computes later
    changes the header's words, not the job.
    """
    role = expert.role
    paths = [lora.files[role] for each in recipe.passes for lora in each.loras if role in lora.files]
    mix, others = _mix(recipe.mix, role)
    sources = [*expert.source.identity()["files"], *({"name": os.path.basename(path), "sha256": sha256[path]} for path in paths)]
    asked = {"role": role, "output": asdict(output.only(role)), "mix": mix,
             "passes": [told for each in recipe.passes if (told := _pass(each, role))["loras"]],
             "compat": recipe.compat, "normalize": recipe.normalize,
             "said": [recipe.title, recipe.title_version, recipe.date, recipe.save.metadata, recipe.save.lora_names]}
    wish = _digest({**asked, "base": recipe.experts[role], "others": others, "loras": paths})
    header = hashlib.sha256(lay_out(recipe, expert, output, sha256).header).hexdigest()
    content = {"merge": MERGE, "torch": torch.__version__, "device": device, "sources": sources, "asked": asked, "header": header,
               "adapters": [each["adapters"] for each in expert.ledgers]}   # what lies in a file beside a LoRA
    return _digest(content), wish, sources


def _pass(each: Pass, role: str) -> dict:
    """What a pass does to this expert: its rules, and its LoRAs without their paths. Where one pass ends and the next begins
    decides what is combined with what; the number of a pass decides nothing."""
    rules = {name: value for name, value in asdict(each).items() if name not in {"loras", "name", "method", "gate_distillation"}}
    return {**rules, "loras": [[lora.strength.get(role, 1.0), lora.resolved, lora.protected, lora.rs_lora, lora.scope]
                               for lora in each.loras if role in lora.files]}


def _mix(mix: Mix | None, role: str) -> tuple[dict | None, tuple[str, ...]]:
    """(what is done to this expert's base before any LoRA, paths of the checkpoints it is mixed with)."""
    if mix is None or role not in mix.files:
        return None, ()
    return {**asdict(mix), "files": len(mix.files[role]), "strength": mix.strength.get(role, 1.0)}, mix.files[role]


def _digest(value: dict) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
