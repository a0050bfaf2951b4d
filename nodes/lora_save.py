"""Where the LoRA tools save: ComfyUI's own loras folder, under a name the user types; and the widgets that all three share."""
import os

import folder_paths
from comfy_api.latest import io

from ..engine.errors import PlanError
from ..engine.jobs.metadata import RANGES
from ..engine.loratools.wish import DTYPES, ON_EXISTS, Save
from ..engine.system import legal_name
from .lora_halves import named, said_by

ENDING = ".safetensors"
SPAN, TITLE = "modelspec.timestep_range", "modelspec.title"   # metadata that tell the expert, to other tools too


def loras_root() -> str:
    """ComfyUI's own models/loras where it is one of the LoRA folders, else the first of them."""
    own = os.path.normcase(os.path.join(folder_paths.models_dir, "loras"))
    roots = folder_paths.get_folder_paths("loras")
    return next((root for root in roots if os.path.normcase(root) == own), roots[0])


def save_as(name: str, role: str | None, *, alone: bool = False, **more) -> Save:
    """The file for one expert, or for a single model (role None). name: may hold folders, as wan/my_mix; alone: as in
    `lora_halves.named`; more: fields of Save. Where the metadata tell no steps, a title tells the expert after a renaming.

    Raises PlanError when the name is not legal or leaves the LoRA folder. Folders are made.
    """
    stem = name.strip().replace("\\", "/").removesuffix(ENDING)
    parts = [part for part in stem.split("/") if part]
    root = loras_root()
    if not parts or ".." in parts or stem.startswith("/"):
        raise PlanError(f"name {name!r}: expected a file name inside loras, as my_lora or wan/my_lora")
    title = named(parts[-1], role, alone=alone)
    path = os.path.join(root, *map(legal_name, parts[:-1]), legal_name(title + ENDING))
    if not folder_paths.is_within_directory(root, path):
        raise PlanError(f"name {name!r}: expected a file name inside loras, as my_lora or wan/my_lora")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    metadata = more.pop("metadata", {})
    if said_by(title) and SPAN not in metadata:
        metadata = {TITLE: title, **metadata}
    return Save(path, metadata=metadata, **more)


def span_of(task: str | None, role: str | None) -> dict[str, str]:
    """modelspec.timestep_range, where task and expert are known: musubi's word, which other tools believe too."""
    span = RANGES.get((task, role))
    return {SPAN: span} if span else {}


def name_input(what: str) -> io.Input:
    return io.String.Input("name", default="", placeholder=what,
                           tooltip="File name in models/loras, without ending; folders are allowed, as wan/my_lora. Of a pair, "
                                   "_high_noise and _low_noise are put behind it, and behind a name that does not tell "
                                  f"the one expert it is for. Empty: {what}.")


def exists_input() -> io.Input:
    return io.Combo.Input("on_exists", options=list(ON_EXISTS), default="number",
                          tooltip="When a file of that name is there: number appends -2, overwrite replaces it at the very end, "
                                  "error stops before the start.")


def dtype_input() -> io.Input:
    return io.Combo.Input("dtype", options=list(DTYPES), default="bf16",
                          tooltip="Of the saved factors. bf16 and fp16 are half the size; what their rounding costs is part of "
                                  "the stated error. fp32 keeps everything.")


def refused_input() -> io.Input:
    return io.Combo.Input("on_refused", options=["error", "leave_out"], default="error", advanced=True,
                          tooltip="What happens to a key that cannot be stored this way. error: nothing is written, and it is "
                                  "named. leave_out: it is not in the new file, and every such key is listed.")


def rank_inputs() -> list[io.Input]:
    return [io.Int.Input("rank", default=64, min=1, max=4096, tooltip="How many components a layer keeps at most."),
            io.Float.Input("energy", default=0.0, min=0.0, max=1.0, step=0.001,
                           tooltip="Keep as few components as hold this share of the layer's change (squared norm), at most "
                                   "rank. 0: always rank.")]
