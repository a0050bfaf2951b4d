"""Which expert each LoRA file of a list goes to: by the user's word, else by its own evidence; halves find each other."""
import os
from dataclasses import dataclass

from ..engine.bases.roles import partner
from ..engine.errors import LoraError
from ..engine.loras.lora import open_lora
from ..engine.loras.routing import CHOICES, route
from . import paths
from .handles import Lora

SIDES = CHOICES
MISSING = ("error", "add", "ignore")               # what happens when only one half of a pair is listed
ROLE = {"high": "high_noise", "low": "low_noise"}
OTHER = {"high_noise": "low_noise", "low_noise": "high_noise"}


@dataclass(frozen=True)
class Wanted:
    """One line of a list: a file, where to, how strong."""

    path: str
    side: str
    strength_high: float
    strength_low: float

    @property
    def name(self) -> str:
        return os.path.basename(self.path)


def place(wanted: list[Wanted], missing: str) -> tuple[list[Lora], list[str]]:
    """Handles of all files in their order, and a line about each: where it goes and why.

    missing: one of MISSING. Raises LoraError when a half is missing and nobody said that this is meant, or when a file that
    says which expert it is for cannot be understood.
    """
    experts = [_expert(each) for each in wanted]
    loras, lines, taken = [], [], set()
    for number, (each, (expert, why)) in enumerate(zip(wanted, experts, strict=True)):
        if number in taken:
            continue
        if expert == "both":
            loras.append(Lora(each.path, each.path, each.strength_high, each.strength_low))
            lines.append(f"{each.name}: both experts ({why})")
            continue
        twin = _twin(number, wanted, experts, taken)
        lines.append(f"{each.name}: {expert} ({why})")
        if twin is not None:
            taken.add(twin)
            lines.append(f"{wanted[twin].name}: {OTHER[expert]}, its other half")
            loras.append(_pair(expert, each, wanted[twin]))
        else:
            loras.append(_half(each, expert, missing, lines))
    return loras, lines


def _expert(each: Wanted) -> tuple[str, str]:
    """high_noise, low_noise or both for one file, and the evidence."""
    with open_lora(each.path) as lora:
        found = route(each.path, lora, each.side)
    if found.expert == "ask":
        raise LoraError(f"{each.name}: expected one expert, found both words ({found.evidence}); choose high, low or both by hand")
    return ROLE.get(found.expert, "both"), found.evidence


def _twin(number: int, wanted: list[Wanted], experts: list[tuple[str, str]], taken: set[int]) -> int | None:
    """The place of the other half in the list; None when it is not there. A half whose side the user chose has none."""
    each, expert = wanted[number], experts[number][0]
    if each.side != "auto":
        return None
    other = partner(each.path)
    fitting = (place for place, (one, (theirs, _)) in enumerate(zip(wanted, experts, strict=True))
               if place not in taken and one.path == other and one.side == "auto" and theirs == OTHER[expert])
    return next(fitting, None)


def _pair(expert: str, each: Wanted, other: Wanted) -> Lora:
    high, low = (each, other) if expert == "high_noise" else (other, each)
    return Lora(high.path, low.path, high.strength_high, low.strength_low)


def _half(each: Wanted, expert: str, missing: str, lines: list[str]) -> Lora:
    """A file whose other half is not listed."""
    other = partner(each.path) if each.side == "auto" else None
    found = other is not None and paths.inside("loras", other)
    if each.side == "auto" and missing == "error":
        where = f"{os.path.basename(other)} lies beside it" if found else "its other half is not beside it"
        raise LoraError(f"{each.name}: made for {expert} alone, and {where}; list both, set missing_half to add or ignore, or "
                        "choose a side")
    if each.side == "auto" and missing == "add":
        if not found:
            raise LoraError(f"{each.name}: its other half is not beside it; put it there, or set missing_half to ignore")
        lines.append(f"{os.path.basename(other)}: {OTHER[expert]}, added as its other half")
        return _pair(expert, each, Wanted(other, "auto", each.strength_high, each.strength_low))
    high, low = (each.path, None) if expert == "high_noise" else (None, each.path)
    return Lora(high, low, each.strength_high, each.strength_low)
