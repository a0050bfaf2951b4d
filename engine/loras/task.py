"""What a LoRA was trained for, text to video or image to video, and what to say when the model is for the other.

A style LoRA of the other task mostly works, so that is a notice. A distillation LoRA is one exact change of the sampler's path, of
one model: on the other one it is wrong, so that is a warning. Shapes say it only where the patch embedding is trained.
"""
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .strangers import patch_channels

if TYPE_CHECKING:
    from ..bases.variant import Variant
    from .lora import LoraFile

T2V, I2V = "t2v", "i2v"
WORDS = {T2V: "text to video (T2V)", I2V: "image to video (I2V)"}
CHANNELS = {16: T2V, 36: I2V}                      # latent; latent, mask and picture (Wan2.2 configs t2v_A14B, i2v_A14B)
BORDERS = {"875": T2V, "900": I2V}                 # boundary * 1000 of the same configs, as musubi's ranges have it
RANGE = re.compile(r"\s*(\d+)(?:\.0*)?\s*,\s*(\d+)(?:\.0*)?\s*")
NAMED = re.compile(r"(?<![a-z0-9])(?:(t2v|text[-_ ]?to[-_ ]?video)|(i2v|image[-_ ]?to[-_ ]?video))(?![a-z])", re.IGNORECASE)
TITLES = ("ss_output_name", "ss_sd_model_name", "modelspec.title", "ss_base_model_version")


@dataclass(frozen=True)
class Task:
    """task: t2v, i2v, or None where nothing or both are said; evidence: in words."""

    task: str | None
    evidence: str


@dataclass(frozen=True)
class Notice:
    """level: notice or warning; text: for the user."""

    level: str
    text: str


def task_of(lora: "LoraFile") -> Task:
    """Task by the patch embedding's channels, else the timestep range, else the file's name, its folder, the metadata's titles."""
    channels = patch_channels(lora.specs)
    if channels in CHANNELS:
        return Task(CHANNELS[channels], f"its patch embedding takes {channels} channels")
    text = lora.metadata.get("modelspec.timestep_range", "")
    found = RANGE.fullmatch(text)
    borders = {BORDERS[end] for end in found.groups() if end in BORDERS} if found else set()
    if len(borders) == 1:
        return Task(borders.pop(), f"metadata modelspec.timestep_range {text.strip()!r}")
    folder, name = os.path.split(os.path.abspath(lora.path))
    places = [("file name", name), ("folder", os.path.basename(folder))]
    places += [(f"metadata {title}", lora.metadata.get(title, "")) for title in TITLES]
    for where, said in places:
        found = {T2V if match[1] else I2V for match in NAMED.finditer(said)}
        if found:
            return Task(found.pop() if len(found) == 1 else None, f"{where} {said!r}")
    return Task(None, "no word for T2V or I2V in keys, metadata, file name or folder")


def task_notice(lora: "LoraFile", variant: "Variant") -> Notice | None:
    """What to tell the user about a LoRA of the other task than the model's; None when they agree or one of them is not known."""
    found = task_of(lora)
    if found.task is None or variant.task not in WORDS or found.task == variant.task:
        return None
    told = f"{lora.name}: made for {WORDS[found.task]} ({found.evidence}), and the model is for {WORDS[variant.task]}"
    if lora.is_distillation:
        remedy = f"a distillation LoRA works only on its own model: take the one for {variant.task.upper()}"
        return Notice("warning", f"{told}; {remedy}")
    return Notice("notice", f"{told}; a style or motion mostly carries over")
