"""The recipe inside a finished file: enough to make the very same file again, and nothing about the machine it was made on.

It is our recipe format, for this file's expert alone, with file names in place of paths (or hashes, where LoRAs shall not be
named), the SHA-256 of every LoRA, methods as they were resolved, and the constants of those that were used. Passes keep their
numbers; LoRAs of strength 0 are in none of the bytes and are left out. Relinked (relink.py), it gives the same bytes.
"""
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from .. import strict_json
from ..bases.gguf_header import is_gguf, open_gguf
from ..bases.shards import find_files
from ..errors import RecipeError
from ..header import read_header
from .recipe import Recipe, parse, plain
from .recipe_parts import ROLES, LoraEntry, Output, Pass, Save

ENTRY = "wan22_master"                             # of the metadata
HASHED = "sha256:"                                 # in place of a file's name: known by its content alone
HEX = re.compile(r"[0-9a-f]{64}")
GATES = ("classic", "adaptive")
ELSEWHERE = ("experts", "mix", "passes", "outputs", "save", "device")   # fields of the recipe that are said in another way


@dataclass(frozen=True)
class Embedded:
    """What a finished file tells. `base`: name and, where it was known, sha256 of what it was made from."""

    recipe: Recipe
    role: str
    base: dict[str, str]
    engine: str
    merge: int
    format: str


def given(each: Pass, role: str) -> list[LoraEntry]:
    """The LoRAs of a pass that are in the bytes of this expert's file."""
    return [lora for lora in each.loras if lora.files.get(role) and lora.strength.get(role, 1.0) * each.global_factor]


def describe(recipe: Recipe, role: str, base: str, label: str, hashes: list[str]) -> dict:
    """The recipe to embed, as JSON. recipe: resolved; base: public name; label: of the output; hashes: of the LoRAs given to
    `role`, in their order."""
    found, left = recipe.to_json(), iter(hashes)
    kept = {name: value for name, value in found.items() if name not in ELSEWHERE}
    passes = [_pass(each, found["passes"][number], role, left) for number, each in enumerate(recipe.passes)]
    if not recipe.save.lora_names:
        for lora in (lora for each in passes for lora in each["loras"]):
            lora["files"] = {role: HASHED + lora["sha256"][role]}
    while passes and not passes[-1]["loras"]:
        passes.pop()
    mix = found.get("mix")
    if mix and role in mix["files"]:
        files = {role: [_public_name(path) for path in recipe.mix.files[role]]}
        kept["mix"] = {**mix, "files": files, "strength": {role: mix["strength"].get(role, 1.0)}}
    return {**kept, "experts": {role: base}, "passes": passes,
            "outputs": [_said(output_of(recipe, role, label).only(role), names=recipe.save.lora_names)],
            "save": {"metadata": recipe.save.metadata, "lora_names": recipe.save.lora_names}}


def _public_name(path: str) -> str:
    """As `metadata.public_name`: never the name of a folder."""
    return os.path.basename(find_files(path).files[0] if os.path.isdir(path) else path)


def output_of(recipe: Recipe, role: str, label: str) -> Output:
    """The output of one file."""
    return next(each for each in recipe.outputs if each.label == label and role in each.experts)


def _said(output: Output, *, names: bool) -> dict:
    """An output without what it leaves at the default, but its activations. names: files may be called by their names."""
    empty = Output(output.format)
    told = {name: getattr(output, name) for name in vars(output) if getattr(output, name) != getattr(empty, name)}
    if output.imatrix:
        hashes = {} if names else output.imatrix_sha256
        told["imatrix"] = {role: HASHED + hashes[role] if role in hashes else os.path.basename(path)
                           for role, path in output.imatrix.items()}
    return plain({"format": output.format, "activations": output.activations, **told})


def describe_whole(recipe: Recipe, role: str, label: str, hashes: list[str]) -> dict:
    """The recipe of this file as it was asked, with its paths: for the eyes of its maker. Arguments as for `describe`."""
    left, passes = iter(hashes), []
    for each in cut(recipe, role, label).passes:
        got = given(each, role)
        loras = [replace(lora, sha256=lora.sha256 | {role: next(left)}) if lora in got else lora for lora in each.loras]
        passes.append(replace(each, loras=tuple(loras)))
    # what decides no byte is left out: a job goes on when only that was changed
    save = replace(recipe.save, order=Save.order, on_exists=Save.on_exists)
    return replace(cut(recipe, role, label), passes=tuple(passes), save=save).to_json()


def cut(recipe: Recipe, role: str, label: str) -> Recipe:
    """The recipe of one file alone: one expert, one output, the LoRAs that have a file for it. A job and a header hold no more, so
    that neither depends on the other half."""
    passes = [replace(each, loras=tuple(_mine(lora, role) for lora in each.loras if role in lora.files)) for each in recipe.passes]
    mix = recipe.mix and (replace(recipe.mix, **{name: {role: value[role]} if role in value else {} for name, value in
                                                 (("files", recipe.mix.files), ("strength", recipe.mix.strength))})
                          if role in recipe.mix.files else None)
    return replace(recipe, experts={role: recipe.experts[role]}, mix=mix, passes=tuple(passes),
                   outputs=(output_of(recipe, role, label).only(role),))


def _mine(lora: LoraEntry, role: str) -> LoraEntry:
    """One LoRA for this expert alone."""
    return replace(lora, files={role: lora.files[role]}, strength={role: lora.strength.get(role, 1.0)},
                   sha256={role: lora.sha256[role]} if role in lora.sha256 else {})


def _pass(each: Pass, found: dict, role: str, hashes) -> dict:
    """One pass to embed. A method that was resolved is asked for by name, so that no file's new name can change it."""
    got = given(each, role)
    if not got:
        return {"loras": []}
    used = {lora.resolved or lora.method or each.method for lora in got}
    loras = []
    for lora in got:
        said = {"files": {role: os.path.basename(lora.files[role])}, "strength": {role: lora.strength.get(role, 1.0)},
                "method": lora.resolved or lora.method, "resolved": lora.resolved, "scope": lora.scope,
                "rs_lora": lora.rs_lora, "protected": lora.protected, "sha256": {role: next(hashes)}}
        loras.append({name: value for name, value in said.items() if value not in (None, {})})
    unused = {"name", *(name for name in GATES if name not in used)}
    return {**{name: value for name, value in found.items() if name not in unused},
            "loras": loras, "gate_distillation": bool(used & set(GATES))}


def read(path: str | os.PathLike) -> Embedded:
    """What a finished file tells, from its header alone. Raises HeaderError, or RecipeError when it holds no recipe."""
    said = entry_of(path)
    where = os.path.basename(os.fspath(path))
    if said is None:
        raise RecipeError(f"{where}: expected a model that this pack saved, found no recipe in its header; models saved with "
                          "metadata none have none either: choose another, or the recipe itself")
    try:
        return tell(strict_json.parse(said.encode()), where)
    except ValueError as cause:
        raise RecipeError(f"{where}: {ENTRY}: expected JSON, found text that is none ({cause}); choose another file") from cause


def entry_of(path: str | os.PathLike) -> str | None:
    """The text of the entry in a model file, safetensors or GGUF; None where there is none. Raises HeaderError."""
    found = open_gguf(path).metadata if is_gguf(path) else read_header(path).metadata
    return found.get(ENTRY)


def tell(told: dict, where: str) -> Embedded:
    """From the entry itself. Raises RecipeError: no recipe in it, or a wrong one."""
    recipe, role, base = told.get("recipe"), told.get("expert"), told.get("base")
    if not isinstance(recipe, dict) or role not in ROLES or not isinstance(base, dict):
        raise RecipeError(f"{where}: expected a recipe for one expert in {ENTRY}, found none (the first version told names and "
                          "strengths only); write the recipe anew from what `inspect` shows")
    try:
        parsed = parse(recipe)
    except RecipeError as cause:
        raise RecipeError(f"{where}: {cause}") from cause
    engine, merge, name = told.get("engine"), told.get("merge"), told.get("format")
    return Embedded(parsed, role, {key: str(value) for key, value in base.items()}, str(engine), merge, str(name))


def is_embedded(found: dict) -> bool:
    """True for the entry of a file's metadata, False for a recipe."""
    return "expert" in found and ("recipe" in found or "base" in found)


def baked(metadata: Mapping[str, str]) -> dict[str, str]:
    """SHA-256 -> name of every LoRA that is in a model's weights already, as far as its metadata tells; the name may be empty.

    Text of a stranger: what is no hash is left out, a name loses its folders.
    """
    try:
        told = strict_json.parse(metadata.get(ENTRY, "{}").encode())
    except ValueError:
        return {}                                  # another program's entry
    passes = told.get("passes") if isinstance(told.get("passes"), list) else []
    rows = [lora for each in passes if isinstance(each, dict) for lora in _rows(each.get("loras"))] + _rows(told.get("before"))
    named = {str(row.get("sha256")): str(row.get("name") or "") for row in reversed(rows)}
    return {sha256: re.split(r"[/\\]", name)[-1] for sha256, name in reversed(named.items()) if HEX.fullmatch(sha256)}


def _rows(value: object) -> list[dict]:
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
