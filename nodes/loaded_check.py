"""Save's last check, when it is asked for: every finished file is loaded by ComfyUI and answers beside the merge itself."""
from pathlib import Path

from ..engine.jobs.plan import plan_recipe
from ..engine.preview import BF16, Preview, settle
from . import after_save
from .handles import SavedFile
from .model_handle import ModelDit
from .preview import base_of, path_of
from .preview_adapter import PreviewJob, put_on
from .progress import stoppable
from .recipes import recipe_of, reports_folder


def answered(dit, files: tuple[SavedFile, ...], device: str) -> list[str]:
    """Lines of what each file answers. The reference is the merge as a MODEL, or the MODEL that was saved.

    Raises MergeError when a file answers with NaN or infinity, or cannot be loaded.
    """
    lines: list[str] = []
    for file in files:
        reference = dit.model if isinstance(dit, ModelDit) else reference_of(dit, file.role, device)
        said, _ = after_save.check(file.path, reference, role=file.role)
        lines += said
    return lines


def reference_of(dit, role: str, device: str):
    """The merge of one expert as a MODEL, rounded to bf16."""
    path, reports = path_of(dit, role), Path(reports_folder())
    with stoppable() as wish:
        plan = plan_recipe(recipe_of(dit, device=device), reports, should_stop=wish)
        try:
            preview = Preview(plan, role, output=BF16, should_stop=wish)
        except BaseException:
            plan.__exit__()
            raise
        settle(plan, role, reports=reports, should_stop=wish)
        return put_on(base_of(path), PreviewJob(preview, dit, role))
