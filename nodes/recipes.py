"""From handles to the engine's recipe: what the graph says, as JSON that `engine.recipe.parse` checks; and back from its report."""
import os

import folder_paths

from ..engine.recipe import Recipe, parse
from .handles import PAIR, Dit, Output

UNTITLED = "untitled"                              # where nothing is written; a recipe needs a title


def recipe_of(dit: Dit, outputs: tuple[Output, ...] = (), **more) -> Recipe:
    """The recipe of a merge; without `outputs` it can be planned and measured, not saved.

    more: title, title_version, device and save as in the recipe. Half of a pair goes as a model that is one file.
    """
    passes = [merge_pass.as_json(dit.roles) for merge_pass in dit.passes]
    asked = {"version": 1, "title": UNTITLED, "experts": dict(dit.experts), "allow_quantized_source": dit.allow_quantized_source,
             "passes": passes, "outputs": [output.as_json() for output in outputs], **more}
    return parse(_as_single(asked, dit.roles[0]) if dit.roles not in {PAIR, ("model",)} else asked)


def _as_single(asked: dict, role: str) -> dict:
    def renamed(by_role: dict) -> dict:
        return {"model": by_role[role]}

    passes = [{**each, "loras": [{**lora, "files": renamed(lora["files"]), "strength": renamed(lora["strength"])}
                                 for lora in each["loras"]]} for each in asked["passes"]]
    outputs = [{**output, "experts": ["model"]} for output in asked["outputs"]]
    return {**asked, "experts": renamed(asked["experts"]), "passes": passes, "outputs": outputs}


def with_roles(report: dict, dit: Dit) -> dict:
    """The report with the roles of the graph, where half of a pair went as a single model."""
    experts = [{**expert, "role": role} for expert, role in zip(report["experts"], dit.roles, strict=True)]
    return {**report, "experts": experts}


def reports_folder() -> str:
    """Where reports are kept: in ComfyUI's user folder, which an update of the pack does not touch."""
    return os.path.join(folder_paths.get_user_directory(), "default", "wan22_master", "reports")
