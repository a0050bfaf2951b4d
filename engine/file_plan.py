"""One file of a plan: where its bytes lie, what its header says, and what makes it this file and no other."""
import hashlib
import json
import os
from dataclasses import dataclass, replace

import torch

from . import layout, metadata, precision
from .experts import ExpertPlan
from .recipe import Output, Recipe
from .specs import TensorSpec
from .targets import Target

ENGINE = "0.1.0"                                   # the pack's version, as written into files and reports
MERGE = 1                                          # raised whenever the same inputs would give other bytes
FAST = "fast_uncalibrated"
ONE = torch.ones(1).view(torch.uint8).numpy().tobytes()   # float32 1.0


@dataclass(frozen=True)
class OutputPlan:
    """One file to be written."""

    role: str
    format: str
    layout: layout.Layout
    target: Target
    job_id: str                                    # see `identify`
    wish: str
    sources: list[dict]


def lay_out(recipe: Recipe, expert: ExpertPlan, output: Output, sha256: dict[str, str]) -> layout.Layout:
    """Every byte of one output, from the specs of its expert. sha256: path -> hash, of LoRAs and of a base where it is known."""
    body, entries, scales = {}, {}, {}
    for key in expert.order:
        form = precision.choose(key, expert.specs[key], output.format)
        parts = {suffix: TensorSpec(*spec) for suffix, spec in form.outputs(expert.specs[key].shape).items()}
        body |= {key + suffix: spec for suffix, spec in parts.items() if spec.shape or suffix == ""}
        if output.format in precision.QUANTIZED and precision.is_block_linear(key, expert.specs[key]):
            layer = key.removesuffix(".weight")
            entries[layer + ".comfy_quant"] = form.comfy_quant(full_precision=output.activations != FAST)
            scales |= {key + suffix: spec for suffix, spec in parts.items() if not spec.shape and suffix}
            if output.activations == FAST:         # ComfyUI takes 1.0 in silence where there is none; here it is written out
                scales[layer + ".input_scale"] = ONE
    return layout.place(body, entries, scales, _metadata(recipe, expert, output, sha256))


def _metadata(recipe: Recipe, expert: ExpertPlan, output: Output, sha256: dict[str, str]) -> dict[str, str]:
    base, known = {"name": metadata.public_name(expert.source)}, sha256.get(expert.source.path)
    facts = {"task": expert.variant.task, "size": expert.size, "format": output.format, "engine": ENGINE,
             "base": {**base, "sha256": known} if known else base,
             "passes": metadata.describe_passes(recipe.passes, expert.role, sha256, names=recipe.save.lora_names)}
    return metadata.build(recipe, expert.role, facts, expert.source.metadata)


def identify(recipe: Recipe, expert: ExpertPlan, output: Output, laid: layout.Layout,
             sha256: dict[str, str]) -> tuple[str, str, list[dict]]:
    """(job_id, wish, sources) of one output.

    wish: hash of what was asked of this expert and nothing else, so that another strength on one half leaves the other half's file
    alone; sources: the files it was asked of; job_id: hash of both, of the header, and of what computes: equal ids, equal bytes.
    """
    mine = _of_role(recipe, expert.role, output)
    paths = [lora.files[expert.role] for each in mine.passes for lora in each.loras]
    sources = [*expert.source.identity()["files"], *({"name": os.path.basename(path), "sha256": sha256[path]} for path in paths)]
    wish, header = _digest(mine.to_json()), hashlib.sha256(laid.header).hexdigest()
    content = {"merge": MERGE, "torch": torch.__version__, "sources": sources, "asked": wish, "header": header}
    return _digest(content), wish, sources


def _of_role(recipe: Recipe, role: str, output: Output) -> Recipe:
    """The recipe as far as it concerns one output of one expert."""
    def cut(by_role: dict) -> dict:
        return {role: by_role[role]} if role in by_role else {}

    passes = [replace(each, loras=tuple(replace(lora, files=cut(lora.files), strength=cut(lora.strength))
                                        for lora in each.loras if role in lora.files)) for each in recipe.passes]
    return replace(recipe, experts=cut(recipe.experts), passes=tuple(each for each in passes if each.loras),
                   outputs=(replace(output, experts=(role,)),))


def _digest(value: dict) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
