"""Save's last check, when it is asked for: every finished file is loaded by ComfyUI and answers beside the merge itself."""
from collections.abc import Mapping
from pathlib import Path

from ..engine.bases.source import open_source
from ..engine.errors import MergeError
from ..engine.jobs.plan import plan_recipe
from ..engine.preview import BF16, settle
from . import after_save
from .handles import SavedFile
from .model_handle import ModelDit
from .preview_adapter import PreviewJob, put_on
from .preview_host import base_of, is_in_parts, open_preview, path_of, quantized_weight
from .progress import stoppable
from .recipes import recipe_of, reports_folder


def without_reference(dit) -> dict[str, str]:
    """Role -> why its files have nothing to be compared with; empty where each has. Reads headers alone: told before a run.

    The reference is the merge as a MODEL. A quantized base makes none: ComfyUI rounds the merge to its format again.
    """
    if isinstance(dit, ModelDit):
        found = quantized_weight(dit.model)
        return {dit.role: f"the MODEL is quantized ({found[1]})"} if found else {}
    whys = {role: _why_not(path) for role, path in dit.experts}
    return {role: why for role, why in whys.items() if why}


def _why_not(path: str) -> str | None:
    if is_in_parts(path):
        return "the base is in several files, which ComfyUI cannot load as a MODEL"
    with open_source(path, allow_lossy=True) as source:
        return f"the base is quantized ({source.lossy})" if source.lossy else None


def reference_lines(without: Mapping[str, str]) -> list[str]:
    """What `without_reference` found, in words."""
    return [f"after_save: {'' if role == 'model' else f'{role}: '}loaded and asked, but compared with nothing: {why}"
            for role, why in without.items()]


def answered(dit, files: tuple[SavedFile, ...], device: str, without: Mapping[str, str]) -> list[str]:
    """Lines of what each file answers. without: as `without_reference` found it.

    A reference that cannot be made is told, and the file checked alone: a finished run shall not fail by it. Raises MergeError
    when a file answers with NaN or infinity, or cannot be loaded.
    """
    lines: list[str] = []
    for file in files:
        reference = None
        if file.role not in without:
            try:
                reference = _reference(dit, file.role, device)
            except MergeError as error:
                lines.append(f"WARNING: {file.name}: nothing to compare with: {error}")
        said, _ = after_save.check(file.path, reference, role=file.role)
        lines += said
    return lines + reference_lines(without)


def _reference(dit, role: str, device: str):
    """The MODEL that was saved, or the merge of one expert as a MODEL, rounded to bf16."""
    if isinstance(dit, ModelDit):
        return dit.model
    path, reports = path_of(dit, role), Path(reports_folder())
    with stoppable() as wish:
        plan = plan_recipe(recipe_of(dit, device=device), reports, should_stop=wish)
        preview = open_preview(plan, role, output=BF16, should_stop=wish)
        settle(plan, role, reports=reports, should_stop=wish)
        return put_on(base_of(path), PreviewJob(preview, dit, role))
