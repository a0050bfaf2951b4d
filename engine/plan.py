"""From a recipe and headers to a plan: every output's name, dtypes, shapes, offsets and bytes, before a weight is read."""
import hashlib
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from . import layout, metadata, naming, precision, targets
from .errors import PlanError, SourceError
from .estimate import estimate
from .experts import ExpertPlan, plan_expert
from .hashes import HashCache
from .lora import LoraFile, open_lora
from .methods import resolve_recipe
from .roles import check_pair
from .source import open_source
from .specs import TensorSpec
from .variant import detect

ENGINE = "0.1.0"                                   # the pack's version, as written into files and reports
MERGE = 1                                          # raised whenever the same inputs would give other bytes
FAST = "fast_uncalibrated"


@dataclass(frozen=True)
class OutputPlan:
    """One file to be written."""

    role: str
    format: str
    layout: layout.Layout
    target: targets.Target
    job_id: str
    wish: str
    sources: list[dict]


@dataclass
class Plan:
    """What will happen. Use it in a `with` block: it holds bases and LoRAs open."""

    recipe: object                                 # methods resolved
    experts: list[ExpertPlan]
    notices: list[str]
    loras: list[LoraFile]

    def __enter__(self) -> "Plan":
        return self

    def __exit__(self, *error) -> None:
        for file in [expert.source for expert in self.experts] + self.loras:
            file.close()

    def rows(self) -> list[dict]:
        """The table a dry run shows: file, format, bytes, state, seconds, memory, free space."""
        return [row for expert in self.experts for row in estimate(expert)]


def plan_recipe(recipe, reports: Path) -> Plan:
    """Plan from headers (LoRA files are hashed, once). reports: folder of earlier reports, which tell what is finished.

    Raises RecipeError, SourceError, LoraError, PlanError; nothing is written.
    """
    plan = Plan(recipe, [], [], [])
    try:
        loras = _open_loras(plan)
        cache = HashCache(reports)
        sha256 = {path: cache.sha256(path) for path in loras}
        plan.recipe, plan.notices = resolve_recipe(recipe, {path: lora.is_distillation for path, lora in loras.items()})
        for role, path in recipe.experts.items():
            source = open_source(path, allow_lossy=recipe.allow_quantized_source)
            expert = ExpertPlan(role, source, None, {}, [])
            plan.experts.append(expert)            # so that it is closed whatever comes
            plan.experts[-1] = plan_expert(role, source, detect(source), plan.recipe, loras, sha256)
        _check_experts(plan)
        _plan_outputs(plan, sha256, reports)
    except BaseException:
        plan.__exit__()
        raise
    return plan


def _open_loras(plan: Plan) -> dict[str, LoraFile]:
    loras = {}
    for path in {path for each in plan.recipe.passes for lora in each.loras for path in lora.files.values()}:
        loras[path] = open_lora(path)
        plan.loras.append(loras[path])
    return loras


def _check_experts(plan: Plan) -> None:
    by_role = {expert.role: expert for expert in plan.experts}
    if "high_noise" in by_role and "low_noise" in by_role:
        check_pair(by_role["high_noise"].source, by_role["low_noise"].source)
    for expert in plan.experts:
        if expert.source.lossy:
            plan.notices.append(f"{expert.source.name}: a lossy source ({expert.source.lossy}); a small LoRA may not survive in it")
        for word, count in expert.source.left_out.items():
            plan.notices.append(f"{expert.source.name}: {count} tensors of {word} left out")
    if not plan.experts:
        raise SourceError("no model is chosen; choose at least one expert")


def _plan_outputs(plan: Plan, sha256: dict[str, str], reports: Path) -> None:
    recipe, taken = plan.recipe, set()
    for output in recipe.outputs:
        experts = [expert for expert in plan.experts if not output.experts or expert.role in output.experts]
        if not experts:
            raise PlanError(f"output {output.format}: none of {', '.join(output.experts)} is loaded; choose the expert that is")
        names = {each.role: naming.name_file(recipe.save.name, _values(recipe, each, output.format), each.role) for each in experts}
        naming.check_names(names)
        targets.check_folder(recipe.save.folder)
        laid = {expert.role: _lay_out(recipe, expert, output, sha256) for expert in experts}
        ids = {expert.role: _identify(recipe, expert, output, laid[expert.role], sha256) for expert in experts}
        found = targets.choose(recipe.save.folder, names, ids, recipe.save.on_exists, reports)
        for expert in experts:
            target = found[expert.role]
            if target.path in taken:
                raise PlanError(f"{target.path}: two outputs would get this name; put %format% into the name")
            taken.add(target.path)
            plan.notices += [target.notice] if target.notice else []
            expert.outputs.append(OutputPlan(expert.role, output.format, laid[expert.role], target, *ids[expert.role]))
    targets.check_space([(out.target.path, out.layout.size - _on_disk(out)) for expert in plan.experts for out in expert.outputs])


def _on_disk(out: OutputPlan) -> int:
    part = out.target.path + ".part"
    return out.layout.size if out.target.state == "done" else os.path.getsize(part) if os.path.exists(part) else 0


def _values(recipe, expert: ExpertPlan, format_name: str) -> dict[str, str]:
    return {"title": recipe.title, "version": recipe.title_version, "task": expert.variant.task, "size": expert.size,
            "format": format_name}


def _lay_out(recipe, expert: ExpertPlan, output, sha256: dict[str, str]) -> layout.Layout:
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
                scales[layer + ".input_scale"] = bytes(torch.ones(1).view(torch.uint8).tolist())
    passes = metadata.describe_passes(recipe.passes, expert.role, sha256, names=recipe.save.lora_names)
    facts = {"task": expert.variant.task, "size": expert.size, "format": output.format, "engine": ENGINE, "passes": passes,
             "base": {"name": metadata.public_name(expert.source)}}
    return layout.place(body, entries, scales, metadata.build(recipe, expert.role, facts, expert.source.metadata))


def _identify(recipe, expert: ExpertPlan, output, laid: layout.Layout, sha256: dict[str, str]) -> tuple[str, str, list[dict]]:
    """(job_id, wish, sources): what would change the bytes, what was asked, and the files it was asked of."""
    paths = [lora.files[expert.role] for each in recipe.passes for lora in each.loras if lora.files.get(expert.role)]
    sources = [*expert.source.identity()["files"], *({"name": os.path.basename(path), "sha256": sha256[path]} for path in paths)]
    asked = replace(recipe, outputs=(replace(output, experts=(expert.role,)),)).to_json()
    wish = _digest(asked)
    header = hashlib.sha256(laid.header).hexdigest()
    content = {"merge": MERGE, "torch": torch.__version__, "sources": sources, "asked": wish, "header": header}
    return _digest(content), wish, sources


def _digest(value: dict) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
