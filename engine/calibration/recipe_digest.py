"""The recipe of one expert as a digest: the same for a plan in memory and for the recipe that a finished file embeds."""
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict

from ..recipes import embedded
from ..recipes.recipe import Mix, Pass, Recipe
from ..recipes.recipe_parts import LoraEntry

GATES = ("classic", "adaptive")                    # methods with constants of their own, which count where they are used
UNTOLD = {"loras", "name", "method", "gate_distillation", *GATES}   # a resolved method says all that the last two could


def digest(recipe: Recipe, role: str, hashes: Sequence[str]) -> str:
    """SHA-256, as hex, of what is merged into an expert; "" when it is nothing.

    recipe: resolved. hashes: SHA-256 of each LoRA that has a file for `role`, in the recipe's order, also of those of strength 0.
    Names, paths, titles, outputs and passes without a LoRA for this expert do not count. Checkpoints that are mixed in count by
    their file's name, since no file tells more of them.
    """
    left = iter(hashes)
    passes = [told for each in recipe.passes if (told := _pass(each, role, {id(lora): next(left) for lora in _mine(each, role)}))]
    mix = _mix(recipe.mix, role)
    if not passes and mix is None:
        return ""
    asked = {"passes": passes, "mix": mix, "compat": recipe.compat, "normalize": recipe.normalize}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def loras_of(recipe: Recipe, role: str, hashes: Sequence[str]) -> tuple[tuple[str, str, float], ...]:
    """(name, sha256, strength with the pass's factor) of what is merged into an expert. Arguments as for `digest`."""
    left = iter(hashes)
    found = []
    for each in recipe.passes:
        got = embedded.given(each, role)
        for lora in _mine(each, role):
            sha256 = next(left)
            if any(lora is one for one in got):
                found.append((_base_name(lora.files[role]), sha256, lora.strength.get(role, 1.0) * each.global_factor))
    return tuple(found)


def _mine(each: Pass, role: str) -> list[LoraEntry]:
    return [lora for lora in each.loras if lora.files.get(role)]


def _pass(each: Pass, role: str, hashes: dict[int, str]) -> dict | None:
    """What a pass does; None when it has no LoRA for this expert. hashes: by identity of the entry."""
    got = embedded.given(each, role)
    if not got:
        return None
    methods = [lora.resolved or lora.method or each.method for lora in got]
    said = asdict(each)
    rules = {name: value for name, value in said.items() if name not in UNTOLD or (name in GATES and name in methods)}
    loras = [[hashes[id(lora)], lora.strength.get(role, 1.0), method, bool(lora.protected), lora.rs_lora, lora.scope]
             for lora, method in zip(got, methods, strict=True)]
    return {**rules, "loras": loras}


def _mix(mix: Mix | None, role: str) -> dict | None:
    if mix is None or role not in mix.files or not mix.strength.get(role, 1.0):
        return None
    return {**asdict(mix), "files": [_base_name(path) for path in mix.files[role]], "strength": mix.strength.get(role, 1.0)}


def _base_name(path: str) -> str:
    """Of a path of any system."""
    return os.path.basename(path.rstrip("/\\").replace("\\", "/"))
