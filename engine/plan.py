"""From a recipe and headers to a plan: every output's name, dtypes, shapes, offsets and bytes, before a weight is read."""
import os
from dataclasses import dataclass
from pathlib import Path

from . import naming, targets
from .errors import PlanError, SourceError
from .estimate import estimate
from .experts import ExpertPlan, plan_expert
from .file_plan import OutputPlan, identify, lay_out
from .hashes import HashCache
from .lora import LoraFile, open_lora
from .methods import resolve_recipe
from .recipe import Recipe
from .roles import check_pair
from .source import open_source
from .variant import detect


@dataclass
class Plan:
    """What will happen. Use it in a `with` block: it holds bases and LoRAs open."""

    recipe: Recipe                                 # methods resolved
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


def plan_recipe(recipe: Recipe, reports: Path) -> Plan:
    """Plan from headers (LoRA files are hashed, once). reports: folder of earlier reports, which tell what is finished.

    Raises RecipeError, SourceError, LoraError, PlanError; nothing is written.
    """
    plan = Plan(recipe, [], [], [])
    try:
        loras = _open_loras(plan)
        cache = HashCache(reports)
        sha256 = {path: cache.sha256(path) for path in loras}
        plan.recipe, plan.notices = resolve_recipe(recipe, {path: lora.is_distillation for path, lora in loras.items()})
        sha256 |= {path: known for path in recipe.experts.values() if (known := cache.known_sha256(path))}
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
        laid = {expert.role: lay_out(recipe, expert, output, sha256) for expert in experts}
        ids = {expert.role: identify(recipe, expert, output, laid[expert.role], sha256) for expert in experts}
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


def _values(recipe: Recipe, expert: ExpertPlan, format_name: str) -> dict[str, str]:
    return {"title": recipe.title, "version": recipe.title_version, "task": expert.variant.task, "size": expert.size,
            "format": format_name}
