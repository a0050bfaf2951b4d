"""Recipes of the original Action-Master, read unchanged: what each of their keys becomes here, and what is told about it.

    {"paths": {"base_model", "lora_dir", "global_weight_factor", ...},
     "pipeline": [{"pass_name", "method", "density", "features": [{"file", "weight"}]}]}
`injection` is `classic`; any other method added. A file of the original is for one expert: the caller names it, else base model
and file name tell, else each LoRA's own name. Keys of all its versions are known; one that none of them had is an error.
"""
import os
from dataclasses import dataclass

from ..bases.roles import role_of
from ..errors import RecipeError
from . import commented_json, original_pass, recipe
from .recipe_parts import PAIR

PATHS = ("base_model", "lora_dir", "output_prefix", "title", "resolution", "type", "global_weight_factor", "save_interval")
INERT = {"output_prefix": "files are named by Save", "resolution": "it named nothing but metadata",
         "type": "the kind of model is read from its tensors", "save_interval": "no version of the original read it"}
NO_BASE = "(no base named)"


@dataclass(frozen=True)
class Original:
    """What was read. `notices`: every change and everything left aside, in words. `base`: what it calls its base, or nothing."""

    recipe: recipe.Recipe
    notices: tuple[str, ...]
    base: str


def is_original(found: dict) -> bool:
    """True for a recipe of the original, by its two top keys."""
    return "pipeline" in found or "paths" in found


def read(text: str, where: str = "recipe", *, experts: dict[str, str] | None = None, role: str | None = None) -> Original:
    """Our recipe from the text of an original one.

    where: its path or name, also a hint which expert it is for; experts: the wired model, role -> path, only compared with the
    base it names; role: the expert it is for, None to find out. Raises RecipeError: line and column, or the key that is wrong.
    """
    found = commented_json.parse(text, where)
    commented_json.check_keys(found, ("paths", "pipeline"), "recipe", (text, where))
    paths, pipeline = found.get("paths", {}), found.get("pipeline")
    if not isinstance(paths, dict) or not isinstance(pipeline, list):
        raise RecipeError(f"{where}: expected `paths` as an object and `pipeline` as a list of passes, found "
                          f"{type(paths).__name__} and {type(pipeline).__name__}, correct them")
    commented_json.check_keys(paths, PATHS, "paths", (text, where))
    notices, base = [], str(paths.get("base_model") or "")
    roles = _roles(base, where, tuple(experts or PAIR), role, notices)
    reader = original_pass.Reader(text, where, roles, str(paths.get("lora_dir") or "loras"), notices)
    factor = reader.number(paths, "global_weight_factor", 1.0, "paths")
    passes = [reader.read(step, number) | {"global_factor": factor} for number, step in enumerate(pipeline)]
    _tell_paths(paths, experts, notices)
    remarks = sorted({key for step in [found, paths, *pipeline] for key in step if key.startswith(("_", "//"))})
    notices += [f"remarks are read over: {', '.join(remarks)}"] if remarks else []
    count = sum(len(each["loras"]) for each in passes)
    notices.insert(0, f"recipe of the original Action-Master: {len(passes)} passes, {count} LoRAs")
    title = str(paths.get("title") or "").strip() or os.path.splitext(os.path.basename(where))[0] or "recipe"
    asked = {"version": 1, "title": title, "experts": experts or dict.fromkeys(roles, base or NO_BASE), "passes": passes}
    try:
        return Original(recipe.parse(asked), tuple(dict.fromkeys(notices)), base)
    except RecipeError as cause:
        raise RecipeError(f"{where}: {cause}") from cause


def _roles(base: str, where: str, there: tuple[str, ...], role: str | None, notices: list[str]) -> tuple[str, ...]:
    """The experts that the recipe is for, out of those that are `there`; says on what that rests. role: as the caller knows it."""
    if "model" in there:
        return there
    wanted = (role,) if role else there
    for evidence, path in (("base model", base), ("name", where)):
        name = os.path.basename(path.replace("\\", "/"))
        said = role_of(name, {}, exists=lambda _: False).role if name else None
        if said and said not in wanted:
            raise RecipeError(f"{where}: its {evidence} {name!r} is for {said}, but it is wanted for {' and '.join(wanted)}; "
                              "choose the recipe of that expert, or swap the two")
        if said:
            notices.append(f"for {said}: its {evidence} {name!r} says so")
            return (said,)
    if role is None:
        notices.append("names no expert: each LoRA goes where its own name says, on every expert where it says nothing")
    return wanted


def _tell_paths(paths: dict, experts: dict[str, str] | None, notices: list[str]) -> None:
    notices += [f"paths.{key} {paths[key]!r} is not used: {why}" for key, why in INERT.items() if key in paths]
    base = os.path.basename(str(paths.get("base_model") or "").replace("\\", "/"))
    wired = [os.path.basename(path) for path in (experts or {}).values()]
    if base and wired and base.casefold() not in [name.casefold() for name in wired]:
        notices.append(f"was made for the base {base!r}; the wired one, {' + '.join(wired)}, is used")
