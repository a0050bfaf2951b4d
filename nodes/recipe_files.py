"""Where recipes are kept, and the LoRAs that they may be linked to: ComfyUI's LoRA folders and nothing outside them."""
import os

import folder_paths

from ..engine.errors import RecipeError
from ..engine.hashes import HashCache
from ..engine.recipes.library import Library
from ..engine.system import legal_name
from . import paths
from .recipes import reports_folder

ENDING = ".json"


def recipes_folder() -> str:
    """In ComfyUI's user folder, which an update of the pack does not touch."""
    return os.path.join(folder_paths.get_user_directory(), "default", "wan22_master", "recipes")


def recipe_names() -> list[str]:
    """The recipes there, by name."""
    folder = recipes_folder()
    return sorted(name for name in os.listdir(folder) if name.lower().endswith(ENDING)) if os.path.isdir(folder) else []


def recipe_path(name: str) -> str:
    """Path of a name from `recipe_names`. Raises RecipeError when it is no file of that folder."""
    if name not in recipe_names():                 # a workflow of anybody may name ../../anything
        raise RecipeError(f"{name}: no such recipe in user/default/wan22_master/recipes; choose it again in the list")
    return os.path.join(recipes_folder(), name)


def target_path(name: str) -> str:
    """Path for a recipe to be written. Raises PlanError for a name that some system forbids."""
    bare = name.strip()
    return os.path.join(recipes_folder(), legal_name(bare if bare.lower().endswith(ENDING) else bare + ENDING))


def lora_files() -> dict[str, str]:
    """Relative name -> path of every LoRA that a LoRA Pair lists."""
    found = {name: folder_paths.get_full_path("loras", name) for name in paths.loras()}
    return {name: path for name, path in found.items() if path and paths.inside("loras", path)}


def library(*, search: bool = False, tick=bool) -> Library:
    """The LoRAs here, with the hashes that are known. search, tick: as in engine.library."""
    return Library(lora_files(), HashCache(reports_folder()), search=search, tick=tick)


def relative_name(path: str) -> str:
    """The name under which a LoRA Pair lists a path; the path itself for one outside the LoRA folders."""
    same = os.path.normcase(os.path.abspath(path))
    return next((name for name, each in lora_files().items() if os.path.normcase(os.path.abspath(each)) == same), path)
