"""From handles to the engine's recipe: what the graph says, as JSON that `engine.recipe.parse` checks."""
import json
import os

import folder_paths

from ..engine.recipes.recipe import Recipe, parse
from .handles import Dit, Output

UNTITLED = "untitled"                              # where nothing is written; a recipe needs a title


def recipe_of(dit: Dit, outputs: tuple[Output, ...] = (), **more) -> Recipe:
    """The recipe of a merge; without `outputs` it can be planned and measured, not saved.

    more: title, title_version, device and save as in the recipe.
    """
    passes = [merge_pass.as_json(dit.roles) for merge_pass in dit.passes]
    mix = {"mix": json.loads(dit.mix)} if dit.mix else {}
    asked = {"version": 1, "title": UNTITLED, "experts": dict(dit.experts), "allow_quantized_source": dit.allow_quantized_source,
             **mix, "passes": passes, **json.loads(dit.options), "outputs": [output.as_json() for output in outputs], **more}
    return parse(asked)


def reports_folder() -> str:
    """Where reports are kept: in ComfyUI's user folder, which an update of the pack does not touch."""
    return os.path.join(folder_paths.get_user_directory(), "default", "wan22_master", "reports")
