"""Which expert a LoRA goes on: by its keys, metadata, names and neighbours, in this order, or by the user's word.

    1 key prefix   2 modelspec.timestep_range   3 file name   4 folder   5 titles in the metadata
    6 a sibling that differs in one letter, H or L   7 nothing said: both experts
Weights cannot tell: the experts have equal shapes.
"""
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..bases.prefixes import HIGH, LOW
from ..bases.roles import Role, by_folder, by_letters, by_range, by_words
from ..errors import RecipeError

if TYPE_CHECKING:
    from .lora import LoraFile

CHOICES = ("auto", "high", "low", "both")
WORDS = {HIGH: "high", LOW: "low"}
TITLES = ("ss_output_name", "ss_sd_model_name", "modelspec.title")
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Routing:
    """expert: high, low, both, split (one file holds both) or ask (its names say high and low); evidence: in words.

    against: other evidence that says otherwise, in words; is_chosen: by the user, who is not asked for the other half.
    """

    expert: str
    evidence: str
    against: tuple[str, ...] = ()
    is_chosen: bool = False


def route(path: str, lora: "LoraFile", choice: str = "auto", exists: Callable[[str], bool] = os.path.exists) -> Routing:
    """The expert of a LoRA. choice: the user's word, auto: the evidence decides. A file of both experts stays split.

    Raises RecipeError for another choice.
    """
    if choice not in CHOICES:
        raise RecipeError(f"{os.path.basename(path)}: expert: expected {', '.join(CHOICES)}, found {choice!r}")
    found = _by_evidence(path, lora, exists)
    if choice == "auto" or (choice == "both" and found.expert == "split"):
        return found
    against = () if found.expert in (choice, "both", "split") else (found.evidence,)
    return Routing(choice, "chosen by hand", against, is_chosen=True)


def _by_evidence(path: str, lora: "LoraFile", exists: Callable[[str], bool]) -> Routing:
    said = [role for role in _witnesses(path, lora, exists) if role is not None]
    if lora.dialect.is_combined:
        return Routing("split", "keys of both experts in one file")
    if not said:
        return Routing("both", "no word for high or low noise in keys, metadata, file name or folder")
    first, *others = said
    expert = "ask" if first.role is None else WORDS[first.role]
    return Routing(expert, first.evidence, tuple(each.evidence for each in others if each.role not in (None, first.role)))


def _witnesses(path: str, lora: "LoraFile", exists: Callable[[str], bool]) -> list[Role | None]:
    """What each kind of evidence says, strongest first; a role of None says both words."""
    folder, name = os.path.split(os.path.normpath(path))
    titles = [by_words(f"metadata {title}", lora.metadata[title]) for title in TITLES if title in lora.metadata]
    return [_by_keys(lora), by_range(lora.metadata), by_words("file name", name), by_folder(folder, exists), *titles,
            by_letters(folder, name, exists)]


def _by_keys(lora: "LoraFile") -> Role | None:
    halves = lora.dialect.halves
    return Role(next(iter(halves)), "prefix of the keys") if len(halves) == 1 else None


def strengths(text: str) -> tuple[float, float]:
    """`high;low`, as Wan2GP writes it, -> two strengths; one number is for both. Raises RecipeError for anything else."""
    parts = [part.strip() for part in str(text).split(";")]
    if len(parts) not in (1, 2) or not all(NUMBER.fullmatch(part) and math.isfinite(float(part)) for part in parts):
        expected = "a number, or two as high;low"
        raise RecipeError(f"strength: expected {expected}, found {text!r}; write 1.0, or 3.0;1.5")
    return float(parts[0]), float(parts[-1])
