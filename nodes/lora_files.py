"""Which file of a LoRA goes on which expert, from the widgets of LoRA Pair, and why that may be wrong."""
import os

from ..engine.bases.roles import partner
from ..engine.errors import LoraError
from ..engine.loras.lora import open_lora
from ..engine.loras.routing import route
from . import paths

NO_FILE = {paths.NONE, paths.AUTO_PAIR, paths.SAME_FILE}


def choose_low(high: str | None, lora_low: str, *, needed: bool) -> str | None:
    """Path for the low-noise expert. Raises LoraError when it is `needed`, and a LoRA that names its expert has no partner."""
    if lora_low == paths.NONE:
        return None
    if lora_low not in NO_FILE:
        return paths.lora_path(lora_low)
    if high is None or lora_low == paths.SAME_FILE:
        return high
    found = partner(high)
    if found and paths.inside("loras", found):
        return found
    with open_lora(high) as lora:
        said = route(high, lora)
    name = os.path.basename(high)
    if said.expert == "ask":
        raise LoraError(f"{name}: names both experts ({said.evidence}); choose lora_low by hand, or (same file), or experts")
    if said.expert in {"both", "split"}:
        return high
    if needed:
        raise LoraError(f"{name}: made for the {said.expert}_noise expert ({said.evidence}), and its partner is not beside it; "
                        "choose lora_low by hand, or (none), or (same file)")
    return None


def by_hand(path: str | None, lora_low: str, experts: str) -> tuple[str | None, str | None]:
    """(high, low) where one file goes on the experts that the user names. Raises LoraError when lora_low says something else."""
    if lora_low != paths.AUTO_PAIR:
        raise LoraError(f"lora pair: experts is {experts}, and lora_low names {lora_low}; set one of them to auto")
    return (path if experts != "low" else None), (path if experts != "high" else None)


def doubts(high: str | None, low: str | None) -> tuple[str, ...]:
    """Why a file may sit on the wrong expert, by its own evidence. The same file on both is the user's word and no doubt."""
    said = []
    for path, role in ((high, "high_noise"), (low, "low_noise")):
        if path and high != low:
            with open_lora(path) as lora:
                found = route(path, lora)
            if found.expert in {"high", "low"} and f"{found.expert}_noise" != role:
                said.append(f"{os.path.basename(path)}: is put on {role}, but made for {found.expert}_noise ({found.evidence})")
    return tuple(said)
