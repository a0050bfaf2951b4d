"""The node that keeps a recipe as a file: its LoRAs by their relative names, for this machine or another."""
import json
import os

from comfy_api.latest import io

from ..engine.errors import PlanError, Stopped
from ..engine.recipes import recipe as recipes
from ..engine.recipes.original_recipe import NO_BASE
from ..engine.recipes.recipe_parts import PAIR
from ..engine.system import naming, next_free, write_json
from . import freshness, recipe_files, sockets
from .progress import stoppable
from .recipe_handle import json_of
from .widgets import check_filled


class Wan22RecipeSave(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Wan22RecipeSave",
            display_name="Recipe Save (Wan 2.2)",
            category="Wan 2.2 Master/2 merge",
            description="Keeps a recipe in user/default/wan22_master/recipes: passes, LoRAs by their names in the LoRA folders, "
                        "and on wish their SHA-256, by which a moved or renamed LoRA is found again.",
            search_aliases=["save recipe", "export recipe", "keep recipe", "recipe"],
            inputs=[
                sockets.Recipe.Input("recipe", tooltip="From Action-Master LoRA Inject or Recipe Load."),
                io.String.Input("name", default="my_recipe", tooltip="Name of the file, and title of the recipe."),
                io.Combo.Input("on_exists", options=["number", "overwrite", "error"], default="number",
                               tooltip="When another recipe has the name: number appends -2, overwrite replaces it, error stops. "
                                       "The very same recipe is not written twice."),
                io.Boolean.Input("hashes", default=True,
                                 tooltip="Write the SHA-256 of every LoRA; a LoRA that was never hashed is read once."),
                sockets.Dit.Input("dit", optional=True, tooltip="The model, to write down the names of its files."),
            ],
            outputs=[
                io.String.Output(display_name="path", tooltip="Where the recipe is."),
                io.String.Output(display_name="text", tooltip="The recipe as JSON."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return freshness.token(cls.hidden.unique_id)

    @classmethod
    def execute(cls, recipe, name, on_exists, hashes, dit=None) -> io.NodeOutput:
        check_filled("recipe save: name", name)
        with stoppable() as wish:
            said = as_json(recipe, name.strip(), dit, hash_of(wish) if hashes else None)
        path, is_there = choose(recipe_files.target_path(name), said, on_exists)
        if not is_there:
            with naming(os.path.dirname(path), "made", "check the rights of ComfyUI's user folder"):
                os.makedirs(os.path.dirname(path), exist_ok=True)
            write_json(path, said)
        freshness.remember(cls.hidden.unique_id, [path])
        count, mix = len(said["passes"]), ", mix of checkpoints" if said.get("mix") else ""
        told = f"{os.path.basename(path)}{' (already there)' if is_there else ''}: {count} pass{'es' * (count != 1)}{mix}"
        return io.NodeOutput(path, json.dumps(said, indent=1, ensure_ascii=False), ui={"text": (told,)})


def as_json(recipe, title: str, dit, sha256_of) -> dict:
    """The recipe to write, checked. sha256_of: path -> hash, or None to write none."""
    roles = dit.roles if dit else roles_of(recipe)
    experts = {role: os.path.basename(path) for role, path in dit.experts} if dit else dict.fromkeys(roles, NO_BASE)
    asked = {"version": 1, "title": title, "experts": experts, **json_of(recipe, roles)}
    if dit and dit.mix:
        asked["mix"] = with_names(json.loads(dit.mix))
    for lora in (lora for each in asked["passes"] for lora in each["loras"]):
        lora["resolved"] = None                    # for that model; another may resolve it otherwise
        if sha256_of:
            lora["sha256"] = {role: sha256_of(path) for role, path in lora["files"].items()}
        lora["files"] = {role: recipe_files.relative_name(path) for role, path in lora["files"].items()}
    return recipes.parse(asked).to_json()


def with_names(mix: dict) -> dict:
    """The mix with file names in place of paths: folders are nobody else's business."""
    return mix | {"files": {role: [os.path.basename(path) for path in paths] for role, paths in mix["files"].items()}}


def roles_of(recipe) -> tuple[str, ...]:
    """The experts that a recipe has LoRAs for; the pair where it has none."""
    loras = [lora for each in recipe.passes for lora in each.loras]
    there = {role: any(getattr(lora, name) for lora in loras) for role, name in zip(PAIR, ("high", "low"), strict=True)}
    return tuple(role for role in PAIR if there[role]) or PAIR


def hash_of(wish):
    """A function path -> SHA-256 that remembers, and stops when the user wants to."""
    def tick() -> None:
        if wish():
            raise Stopped("stopped while LoRAs were hashed; what is done is kept")

    cache = recipe_files.library().cache
    return lambda path: cache.sha256(path, tick)


def choose(path: str, said: dict, on_exists: str) -> tuple[str, bool]:
    """(path to write, True when this very recipe is there). Raises PlanError when the name is taken and shall not be."""
    if not os.path.exists(path):
        return path, False
    try:
        with open(path, encoding="utf-8") as file:
            is_same = json.load(file) == said
    except (OSError, ValueError):
        is_same = False
    if is_same or on_exists == "overwrite":
        return path, is_same
    if on_exists == "error":
        raise PlanError(f"{os.path.basename(path)}: exists already; choose another name, or set on_exists to number or overwrite")
    return next_free(path), False
