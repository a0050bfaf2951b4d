"""The node that turns a text file of prompts into one queue: list outputs, one element a prompt."""
import os
from dataclasses import replace

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..engine.calibration import prompt_list
from ..engine.calibration.built_in_prompts import BUILT_IN
from ..engine.calibration.prompt_file import PromptFile, parse, read
from ..engine.calibration.prompt_list import Defaults, Entry
from ..engine.calibration.prompt_pairs import settle
from ..engine.calibration.session import Session
from ..engine.errors import RecipeError
from . import calibration_files, plan_files, prompt_images, prompt_register
from . import prompt_list_widgets as widgets
from .widgets import check_filled

FOLDER = "prompts"


class Wan22PromptList(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Wan22PromptList",
            display_name="Prompt List (Wan 2.2)",
            category="Wan 2.2 Master/3 calibrate",
            description="A text file of prompts, one a line, in musubi-tuner's form, as one queue: each output is a list with an "
                        "element for every prompt, and ComfyUI runs the nodes behind it once for each. With skip_done a "
                        "calibration that was stopped goes on where it was.",
            search_aliases=["batch prompts", "prompts from file", "musubi", "prompt file", "calibration prompts"],
            inputs=[*widgets.inputs([widgets.BUILT_IN, *names()])],
            outputs=[*widgets.outputs()],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **asked):
        known = {name: asked.get(name) or "" for name in ("text", "image_folder", "session")}   # a linked one is not known yet
        found = source_of(asked["file"], known["text"])
        images = prompt_images.images_for(found, None, known["image_folder"])
        return repr(found), images and images.states(), sorted(done_of(asked | known)[0]) if asked["skip_done"] else ()

    @classmethod
    def execute(cls, images=None, **asked) -> io.NodeOutput:
        found = source_of(asked["file"], asked["text"])
        if not found.lines:
            raise RecipeError(f"{found.name}: expected a prompt a line, found none; write one, or choose another file")
        source = prompt_images.images_for(found, images, asked["image_folder"])
        made, told = with_images(found, prompt_list.entries(found, defaults_of(asked), asked["preset"]), source, asked)
        if asked["skip_done"]:
            check_filled("prompt list: session", asked["session"])
        done, of_session = done_of(asked) if asked["skip_done"] else (set(), [])
        chosen, skipped = prompt_list.choose(made, asked["first"], asked["limit"], done)
        prompt_register.remember(chosen, cls.hidden.unique_id)
        text = "\n".join([*found.notices, *told, *of_session, *summary(found, chosen, skipped)])
        columns = [[getattr(entry, name) for entry in chosen] for name in widgets.COLUMNS]
        columns.append([source.load(entry.image) if entry.image else None for entry in chosen])
        if not chosen:                             # an empty list makes the next node fail (execution.py, slice_dict)
            columns = [ExecutionBlocker(None) for _ in columns]
        return io.NodeOutput(*columns, text, ui={"text": (text,)})


def names() -> list[str]:
    """Text files in user/default/wan22_master/prompts."""
    return plan_files.names(FOLDER, (".txt",))


def path_of(name: str) -> str:
    """Path of a name from `names`. Raises RecipeError when it is no file of that folder."""
    if name not in names():
        raise RecipeError(f"{name}: no such file in user/default/wan22_master/{FOLDER}; choose it again in the list")
    return os.path.join(plan_files.folder_of(FOLDER), name)


def source_of(file: str, text: str) -> PromptFile:
    """The prompts of `text`, or of `file` where that is blank."""
    if text.strip():
        return parse(text, "prompt list: text")
    return parse(BUILT_IN, file) if file == widgets.BUILT_IN else read(path_of(file))


def defaults_of(asked: dict) -> Defaults:
    return Defaults(**{name: asked[name] for name in ("negative", "width", "height", "frames", "seed", "steps", "cfg")})


def with_images(found: PromptFile, made: list[Entry], images, asked: dict) -> tuple[list[Entry], list[str]]:
    """The runs with their start images, less those that are skipped for want of one, and what to tell. images: None for none."""
    if images is None:
        return made, []
    pairing = prompt_images.paired(found, images, asked["pair"], asked["image_folder"])
    left_out, told = settle(found, pairing, asked["on_missing_image"])
    if len(left_out) == len(made):
        raise RecipeError(f"{found.name}: no prompt has a start image in {images.looked}, so none is left; check pair, --i and "
                          "image_folder")
    digests = {name: images.digest(name) for name in set(pairing.images.values())}
    given = [replace(entry, image=name, image_digest=digests[name]) if (name := pairing.images.get(entry.place)) else entry
             for entry in made if entry.place not in left_out]
    return given, [*pairing.notices, *told]


def done_of(asked: dict) -> tuple[set[str], list[str]]:
    """prompt_ids that the session has whole, and what to tell. A session that is not there yet has none."""
    name, experts = asked["session"].strip(), asked["experts"]
    if name not in calibration_files.names():
        return set(), [f"session {name}: not there yet, so no prompt is done"]
    runs = Session.open(calibration_files.folder(name)).runs()
    return prompt_list.done(runs, prompt_list.EXPERTS if experts == widgets.BOTH else (experts,)), []


def summary(found: PromptFile, chosen: list[Entry], skipped: int) -> list[str]:
    """How many run, and each of them in a line."""
    lines = [f"{found.name}: {len(chosen)} of {len(found.lines)} prompts to run, {skipped} are done"]
    if not chosen:
        return [*lines, "nothing is left to run: the nodes behind this one are left out, Calibration Summary too where its after "
                        "comes from the sampler: disconnect after to go on, or turn skip_done off to run prompts again"]
    lines += [prompt_list.costs(chosen), *prompt_list.repeated(chosen)]
    if odd := prompt_list.odd_for_5b(chosen):
        lines.append(f"{len(odd)} of them with a width or height that is no multiple of {prompt_list.SIDE_5B}: for the 14B models, "
                     "not for the 5B")
    return lines + [f"{entry.place}: {entry.width} x {entry.height} x {entry.frames}, seed {entry.seed}, {entry.steps} steps, cfg "
                    f"{entry.cfg:g}{f', {entry.image}' if entry.image else ''}: {entry.prompt[:60]}" for entry in chosen]
