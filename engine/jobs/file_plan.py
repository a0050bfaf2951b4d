"""One file of a plan: where its bytes lie, what its header says, and what makes it this file and no other."""
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import torch

from .. import precision
from ..plans.cards import FLOATS
from ..precision import GGUF, Forms
from ..recipes.recipe import Mix, Output, Pass, Recipe
from ..version import ENGINE, MERGE
from . import gguf_layout, layout, metadata
from .experts import ExpertPlan
from .stored_as import check_layers, forms_of, input_scale
from .targets import Target


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
    importance: Mapping[str, torch.Tensor] = field(default_factory=dict)   # key -> of its input's columns


def lay_out(recipe: Recipe, expert: ExpertPlan, output: Output, sha256: dict[str, str]) -> layout.Layout:
    """Every byte of one output, from the specs of its expert. sha256: path -> hash, of LoRAs and of a base where it is known.

    Raises PlanError for a tensor that its format cannot hold.
    """
    check_layers(expert, output)
    if output.container == GGUF:
        return _lay_out_gguf(recipe, expert, output, sha256)
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


def _lay_out_gguf(recipe: Recipe, expert: ExpertPlan, output: Output, sha256: dict[str, str]) -> layout.Layout:
    said = _metadata(recipe, expert, output, sha256)
    named = {"general.name": recipe.title} if recipe.save.metadata != "none" else {}
    return gguf_layout.place(expert.specs, expert.order, forms_of(expert, output), {**named, **said})


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
    mine = output.only(role)
    sources += [{"name": os.path.basename(path), "sha256": sha256[path]} for path in mine.imatrix.values()]
    asked = {"role": role, "output": asdict(replace(mine, imatrix={}, imatrix_sha256={})), "mix": mix,
             "passes": [told for each in recipe.passes if (told := _pass(each, role))["loras"]],
             "compat": recipe.compat, "normalize": recipe.normalize,
             "said": [recipe.title, recipe.title_version, recipe.date, recipe.save.metadata, recipe.save.lora_names]}
    wish = _digest({**asked, "base": recipe.experts[role], "others": others, "loras": paths, "imatrix": mine.imatrix})
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
