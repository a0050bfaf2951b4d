"""From a recipe and headers to a plan: every output's name, dtypes, shapes, offsets and bytes, before a weight is read."""
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ..bases.roles import check_pair
from ..bases.source import Source, open_source
from ..bases.variant import detect
from ..checkpoints import open_mixed
from ..device import Device, choose, full_float32
from ..errors import PlanError, SourceError, Stopped
from ..hashes import HashCache
from ..loras.lora import LoraFile, open_lora
from ..loras.routing import route
from ..loras.task import task_notice
from ..merging.methods import resolve_recipe
from ..progress import Clock, silent
from ..recipes.recipe import PAIR, Recipe
from ..recipes.recipe_edit import check_twice
from . import metadata, naming, targets
from . import order as orders
from .carry import Ride
from .encoder import encoded_as_begun
from .estimate import estimate
from .experts import ExpertPlan, plan_expert, weigh
from .file_plan import OutputPlan, identify, lay_out
from .grade import grade
from .importance import files_of, importances, pinned
from .stored_as import forms_of, gguf_notices, noisy_keys


@dataclass
class Plan:
    """What will happen. Use it in a `with` block: it holds bases and LoRAs open."""

    recipe: Recipe                                 # methods resolved
    experts: list[ExpertPlan]
    notices: list[str]
    loras: list[LoraFile]
    device: Device

    def __enter__(self) -> "Plan":
        return self

    def __exit__(self, *error) -> None:
        for file in [expert.source for expert in self.experts] + self.loras:
            file.close()

    @property
    def order(self) -> str:
        """In which order the files are made (order.py)."""
        return orders.choose(self.experts, self.recipe.save.order)

    def volumes(self) -> list[dict]:
        """What the job takes of each volume, at its worst and in the end."""
        return [volume.row() for volume in orders.volumes(self.experts, self.order)]

    def rows(self) -> list[dict]:
        """The table a dry run shows: file, format, bytes, state, seconds, memory, free space."""
        return [row for expert in self.experts for row in estimate(expert)]


def plan_recipe(recipe: Recipe, reports: Path, *, check_space: bool = True, should_stop: Callable[[], bool] = bool,
                sources: Mapping[str, Source] | None = None) -> Plan:
    """Plan from headers; LoRA files are hashed, once, and should_stop is asked while they are. Of a quantized base that LoRAs are
    merged onto, a few rows are read too, once: what it costs them is told before the run (grade.py).

    reports: folder of earlier reports, which tell what is finished; check_space: refuse what the disk cannot hold; sources: bases
    by role that are no files, in place of the recipe's; the plan closes them.
    Raises RecipeError, SourceError, LoraError, PlanError, TensorError, Stopped; no output is begun.
    """
    def tick() -> None:
        if should_stop():
            raise Stopped("stopped before anything was written")

    plan = Plan(recipe, [], [], [], choose(recipe.device))
    try:
        bases = {role: _open_base(plan, role, (sources or {}).get(role)) for role in recipe.experts}
        loras = _open_loras(plan)
        targets.check_folder(str(reports))
        cache = HashCache(reports)
        weights = files_of(recipe.outputs)
        sha256 = {path: cache.sha256(path, tick) for path in [*loras, *weights]}
        plan.recipe, notices = resolve_recipe(recipe, {path: lora.is_distillation for path, lora in loras.items()})
        plan.recipe = replace(plan.recipe, outputs=tuple(pinned(output, sha256) for output in plan.recipe.outputs))
        plan.notices += notices
        check_twice(plan.recipe, sha256, {role: source.metadata for role, (source, _) in bases.items()})
        plan.experts = [plan_expert(role, *base, plan.recipe, loras, sha256) for role, base in bases.items()]
        _check_experts(plan)
        plan.notices += _misplaced(plan.recipe, loras)
        with full_float32():                       # energies are kept, and read again by a host of another choice
            for expert in plan.experts:
                weigh(expert, reports, recipe.strict_share if recipe.strict else None, tick)
        known = {path: found for path in recipe.experts.values() if (found := cache.known_sha256(path))}
        _plan_outputs(plan, sha256, known, reports)
        if check_space:
            orders.check(plan.experts, plan.order)
        ride = Ride(plan.device, Clock(1, silent), should_stop, Path(reports))
        plan.notices += [line for expert in plan.experts for line in grade(expert, ride)]
        plan.notices = list(dict.fromkeys(plan.notices))
    except BaseException:
        plan.__exit__()
        raise
    return plan


def _open_base(plan: Plan, role: str, given: Source | None) -> tuple:
    source = given or open_source(plan.recipe.experts[role], allow_lossy=_may_be_lossy(plan.recipe, role))
    plan.experts.append(ExpertPlan(role, source, None, {}, []))   # so that it is closed whatever comes
    if plan.recipe.mix and role in plan.recipe.mix.files:
        source = open_mixed(source, plan.recipe.mix, role, allow_lossy=plan.recipe.allow_quantized_source)
        plan.experts[-1].source = source
        plan.notices += source.notices()
    return source, detect(source)


def _may_be_lossy(recipe: Recipe, role: str) -> bool:
    """A quantized base is taken where it was allowed, and where nothing is merged onto it: storing it anew is no loss to anyone."""
    merged = any(lora.files.get(role) for each in recipe.passes for lora in each.loras)
    return recipe.allow_quantized_source or not (merged or (recipe.mix and role in recipe.mix.files))


def _open_loras(plan: Plan) -> dict[str, LoraFile]:
    loras = {}
    for path in dict.fromkeys(path for each in plan.recipe.passes for lora in each.loras for path in lora.files.values()):
        loras[path] = open_lora(path)
        plan.loras.append(loras[path])
    return loras


def _check_experts(plan: Plan) -> None:
    by_role = {expert.role: expert for expert in plan.experts}
    if "high_noise" in by_role and "low_noise" in by_role:
        check_pair(by_role["high_noise"].source, by_role["low_noise"].source)
    for expert in plan.experts:
        if expert.source.lossy and expert.contributions and not expert.source.formats:
            plan.notices.append(f"{expert.source.name}: a lossy source ({expert.source.lossy}); a small LoRA may not survive in it")
        moved = set(expert.source.moved) & set(expert.source.formats)
        if moved:                                  # its weights as they were before are not there any more
            plan.notices.append(f"{expert.source.name}: {len(moved)} weights were changed that were quantized already "
                                f"({expert.source.lossy}); what of that is kept cannot be measured here: in their own format they "
                                "are rounded stochastically; the bf16 or fp16 file of this model loses nothing")
        said = metadata.config_notice(expert.source.metadata)
        plan.notices += [f"{expert.source.name}: {said}"] if said else []
        for word, count in expert.source.left_out.items():
            plan.notices.append(f"{expert.source.name}: {count} tensors of {word} left out")
        said = [task_notice(lora, expert.variant) for lora, _ in expert.matched]
        plan.notices += [f"{each.level}: {each.text}" for each in said if each]
    if not plan.experts:
        raise SourceError("no model is chosen; choose at least one expert")


def _misplaced(recipe: Recipe, loras: dict[str, LoraFile]) -> list[str]:
    """Warnings about LoRA files that say they are made for the other expert. One file on both experts is meant so."""
    said = []
    for lora in (lora for each in recipe.passes for lora in each.loras):
        if len(lora.files) == 2 and len(set(lora.files.values())) == 1:
            continue
        for role, path in lora.files.items():
            found = route(path, loras[path])
            if role in PAIR and found.expert in {"high", "low"} and f"{found.expert}_noise" != role:
                said.append(f"warning: {loras[path].name}: is put on {role}, but made for {found.expert}_noise ({found.evidence})")
    return said


def _plan_outputs(plan: Plan, sha256: dict[str, str], known: dict[str, str], reports: Path) -> None:
    """Names, layouts and targets, label by label: two outputs of one label are the halves of one pair."""
    recipe, taken = plan.recipe, set()
    for label in dict.fromkeys(output.label for output in recipe.outputs):
        wanted = [(expert, output) for output in recipe.outputs if output.label == label
                  for expert in plan.experts if expert.role in output.experts]
        names = {each.role: naming.name_file(recipe.save.name, _values(recipe, each, label), each.role, output.container)
                 for each, output in wanted}
        naming.check_names(names)
        targets.check_folder(recipe.save.folder)
        laid = {expert.role: lay_out(recipe, expert, output, sha256 | known) for expert, output in wanted}
        ids = {expert.role: identify(recipe, expert, output, sha256, plan.device.torch_device.type) for expert, output in wanted}
        found = targets.choose(recipe.save.folder, names, ids, recipe.save.on_exists, reports)
        for expert, output in wanted:
            target = found[expert.role]
            if target.path in taken:
                raise PlanError(f"{target.path}: two outputs would get this name; put %format% into the name")
            taken.add(target.path)
            weights, told = importances(expert, output)
            plan.notices += [*([target.notice] if target.notice else []), *gguf_notices(expert, output), *told]
            forms = encoded_as_begun(forms_of(expert, output), target, plan.device.torch_device)
            expert.outputs.append(OutputPlan(expert.role, output.format, label, forms, laid[expert.role], target,
                                             *ids[expert.role], noisy_keys(expert, output), weights))


def _values(recipe: Recipe, expert: ExpertPlan, label: str) -> dict[str, str]:
    return {"title": recipe.title, "version": recipe.title_version, "task": expert.variant.task, "size": expert.size,
            "format": label}
