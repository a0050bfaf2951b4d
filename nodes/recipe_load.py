"""The node that reads a recipe: ours, one of the original Action-Master, or what a finished model tells; and finds its LoRAs."""
import os
from dataclasses import replace

from comfy_api.latest import io

from ..engine.errors import MergeError, Stopped
from ..engine.recipes import recipe_edit, recipe_text, relink
from . import paths, recipe_files, sockets
from .lora_files import doubts
from .progress import stoppable
from .recipe_handle import handle_of

TEXT_BELOW = "(text below)"


class Wan22RecipeLoad(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Wan22RecipeLoad",
            display_name="Recipe Load (Wan 2.2)",
            category="Wan 2.2 Master/2 merge",
            description="Reads a recipe and finds its LoRAs here: by path, name or SHA-256. Drop a recipe, or a model that Save "
                        "Model wrote, on the node to read it; recipes of the original Action-Master are read unchanged.",
            search_aliases=["recipe", "load recipe", "import recipe", "action master", "recipe from model", "reproduce"],
            inputs=[
                io.Combo.Input("recipe", options=[TEXT_BELOW, *recipe_files.recipe_names()], default=TEXT_BELOW,
                               tooltip="A recipe that Recipe Save wrote, or that you put into user/default/wan22_master/recipes. A "
                                       "text below goes before it."),
                io.String.Input("text", default="", multiline=True, placeholder="recipe as JSON, used in place of the file",
                                tooltip="The recipe itself. Of two for one pair, the one for the high-noise expert."),
                io.String.Input("text_low", default="", multiline=True, placeholder="recipe for the low-noise expert alone",
                                tooltip="Recipes of the original and saved models are for one expert each: low noise goes here."),
                io.String.Input("without", default="", placeholder="LoRAs to leave out",
                                tooltip="Leave LoRAs out: number in the report (#2), file name, or start of the SHA-256; several "
                                        "with a semicolon between them."),
                io.Boolean.Input("search_hashes", default=False, advanced=True,
                                 tooltip="Find a renamed LoRA by its SHA-256: reads every LoRA here once, which takes a while."),
                sockets.Dit.Input("dit", optional=True, tooltip="The model, to compare it with the base the recipe was made for."),
            ],
            outputs=[
                sockets.Recipe.Output(display_name="recipe", tooltip="For Action-Master LoRA Inject."),
                io.String.Output(display_name="report", tooltip="What was read, changed, left aside; where each LoRA was found."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, recipe, text, text_low, without):
        if None in (recipe, text, text_low, without):   # linked: known only when it runs
            return True
        try:
            told = read(recipe, text, text_low, None)
            wanted = recipe_edit.without(told.recipe, *listed(without))
        except MergeError as cause:
            return str(cause)
        return "; ".join(missing(wanted)) or True

    @classmethod
    def fingerprint_inputs(cls, recipe, **others):
        files = {name: os.stat(path) for name, path in recipe_files.lora_files().items()}
        chosen = None if recipe in (None, TEXT_BELOW) else paths.signature(recipe_files.recipe_path(recipe))
        return chosen, tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in files.items())

    @classmethod
    def execute(cls, recipe, text, text_low, without, search_hashes, dit=None) -> io.NodeOutput:
        experts = dict(dit.experts) if dit else None
        told, gone = read(recipe, text, text_low, experts), listed(without)
        wanted = recipe_edit.without(told.recipe, *gone)
        with stoppable() as wish:
            there = recipe_files.library(search=search_hashes, tick=lambda: stop_at(wish))
            linked, links = relink.relink(wanted, there)
        relink.check(links)
        lines = [*told.notices, *recipe_edit.listing(told.recipe), *(f"left out: {each}" for each in gone), *relink.table(links),
                 *recipe_text.compare_bases(told, experts or {}, there.cache), *elsewhere(told)]
        report = "\n".join(lines)
        return io.NodeOutput(with_doubts(handle_of(linked)), report, ui={"text": (report,)})


def read(recipe: str, text: str, text_low: str, experts: dict[str, str] | None) -> recipe_text.Told:
    """The recipe that the widgets name. Raises RecipeError: line and column of what is wrong."""
    high = (text, "text")
    if not text.strip() and recipe != TEXT_BELOW:
        high = (recipe_text.load(recipe_files.recipe_path(recipe))[0], recipe)
    return recipe_text.read_two(high, (text_low, "text_low"), experts=experts)


def listed(without: str) -> list[str]:
    """The parts of the `without` widget."""
    return [part.strip() for part in without.replace("\n", ";").split(";") if part.strip()]


def elsewhere(told: recipe_text.Told) -> list[str]:
    """What a recipe says that other nodes decide: needed to make the very same files again."""
    recipe, lines = told.recipe, []
    if recipe.mix:
        lines.append("mix: the checkpoints that it mixes are not on this wire; use Merge Checkpoints before Inject")
    if recipe.outputs:
        version = f", version {recipe.title_version!r}" if recipe.title_version else ""
        formats = ", ".join(f"{each.format} ({each.activations})" for each in recipe.outputs)
        lines.append(f"for the same files choose in Quantize: {formats}; in Save Model: title {recipe.title!r}{version}, metadata "
                     f"{recipe.save.metadata}, lora_names {'on' if recipe.save.lora_names else 'off'}")
    return lines


def missing(recipe) -> list[str]:
    """A line for each LoRA that no file here can be by its name; hashes are not asked for, they may take long."""
    there, lines = recipe_files.library(), []
    for lora in (lora for each in recipe.passes for lora in each.loras):
        for role, asked in lora.files.items():
            link = relink.find(asked, None, there) if role not in lora.sha256 and not asked.startswith(relink.HASHED) else None
            lines += relink.table([link]) if link and link.state == relink.MISSING else []
    return list(dict.fromkeys(lines))


def with_doubts(handle):
    """The recipe's handle with what speaks against a LoRA on its expert, as LoRA Pair notes it."""
    passes = [replace(each, loras=tuple(replace(lora, doubts=doubts(lora.high, lora.low)) for lora in each.loras))
              for each in handle.passes]
    return replace(handle, passes=tuple(passes))


def stop_at(wish) -> None:
    """Raise Stopped when the user wants to stop; what was hashed until then is kept."""
    if wish():
        raise Stopped("stopped while LoRAs were hashed; what is done is kept")
