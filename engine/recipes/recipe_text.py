"""What kind of recipe a text is, and the Recipe in it: ours, one of the original Action-Master, or what a finished model tells.

Two texts make one recipe for the pair: the first for the high-noise expert, the second for the low-noise one.
"""
import json
import os
from dataclasses import dataclass, replace

from ..errors import RecipeError
from ..hashes import HashCache
from ..version import MERGE
from . import commented_json, embedded, original_recipe, recipe_edit
from .recipe import LARGEST, Recipe, parse


@dataclass(frozen=True)
class Told:
    """A recipe and what there is to say about reading it. base: role -> name and hash of a base, where the text told them."""

    recipe: Recipe
    notices: tuple[str, ...]
    kind: str                                      # "original", "recipe" or "model"
    base: dict[str, dict[str, str]]


def read(text: str, where: str = "recipe", *, experts: dict[str, str] | None = None, role: str | None = None) -> Told:
    """One text. where: its path or name; experts: the wired model, role -> path; role: the expert it is for, where that is known.

    A recipe of ours, and a model's, keeps the experts it names. Raises RecipeError.
    """
    found = commented_json.parse(text, where)
    if original_recipe.is_original(found):
        original = original_recipe.read(text, where, experts=experts, role=role)
        return Told(original.recipe, original.notices, "original", {})
    if embedded.is_embedded(found):
        told = embedded.tell(found, where)
        return Told(told.recipe, _made_by(told, where), "model", {told.role: told.base})
    try:
        return Told(parse(found), (), "recipe", {})
    except RecipeError as cause:
        raise RecipeError(f"{where}: {cause}") from cause


def read_two(high: tuple[str, str], low: tuple[str, str], *, experts: dict[str, str] | None = None) -> Told:
    """The recipe of a pair from one text for each expert. high, low: text and its name; a blank text is not there."""
    there = [(text, where, role) for (text, where), role in ((high, "high_noise"), (low, "low_noise")) if text.strip()]
    if not there:
        raise RecipeError("recipe: expected a recipe, found nothing; choose one, write one, or drop a finished model on the node")
    if len(there) == 1:
        text, where, role = there[0]
        return read(text, where, experts=experts, role=role if role == "low_noise" else None)
    halves = []
    for text, where, role in there:
        told = read(text, where, role=role, experts=_half(experts, role))
        notices = tuple(f"{role}: {each}" for each in told.notices)
        halves.append(replace(told, recipe=_cut(told.recipe, role, where), notices=notices))
    first, second = halves
    joined = recipe_edit.join(first.recipe, second.recipe)
    return Told(joined, first.notices + second.notices, first.kind, {**first.base, **second.base})


def compare_bases(told: Told, experts: dict[str, str], cache: HashCache) -> list[str]:
    """What there is to say about the wired model against the base the recipe was made for; an original's says so in its notices.

    experts: role -> path; cache: known hashes, nothing is read for it.
    """
    lines = []
    for role, path in experts.items() if told.kind != "original" else ():
        wanted = told.base.get(role, {})
        asked = os.path.basename((wanted.get("name") or told.recipe.experts.get(role, "")).replace("\\", "/"))
        sha256, known = wanted.get("sha256"), cache.known_sha256(path)
        if sha256 and known:
            same = "the base it was made from, by its SHA-256" if sha256 == known else "another file than the base it was made from"
            lines.append(f"{role}: {os.path.basename(path)} is {same}")
        elif asked and asked != original_recipe.NO_BASE and asked.casefold() != os.path.basename(path).casefold():
            lines.append(f"{role}: was made for the base {asked!r}; the wired one, {os.path.basename(path)}, is used")
    return lines


def load(path: str | os.PathLike) -> tuple[str, str]:
    """(text, name) of a recipe file, or of the recipe inside a model file. Raises RecipeError, HeaderError."""
    path = os.fspath(path)
    if path.lower().endswith((".safetensors", ".gguf")):
        embedded.read(path)                        # says what is wrong with it
        return _entry_of(path), path
    try:
        with open(path, "rb") as file:
            body = file.read(LARGEST + 1)
        return body.decode("utf-8-sig"), path
    except OSError as cause:
        raise RecipeError(f"{path}: cannot be opened: {cause.strerror}, check the path") from cause
    except UnicodeDecodeError as cause:
        raise RecipeError(f"{path}: expected a recipe as UTF-8 text, found other bytes; choose another file, or save it as UTF-8") \
            from cause


def _entry_of(path: str) -> str:
    found = json.loads(embedded.entry_of(path))
    needed = {name: value for name, value in found.items() if name not in {"passes", "before"}}
    return json.dumps(needed, indent=1, ensure_ascii=False)


def _half(experts: dict[str, str] | None, role: str) -> dict[str, str] | None:
    """The wired model as far as it is of this expert. Raises RecipeError for a model that has none."""
    if experts is None or role in experts:
        return experts and {role: experts[role]}
    raise RecipeError(f"recipe for {role}: expected that expert in the wired model, found {' and '.join(experts)}; leave this "
                      "recipe out")


def _cut(recipe: Recipe, role: str, where: str) -> Recipe:
    """The part of a recipe that is for one expert. Raises RecipeError when it has none for it."""
    if role not in recipe.roles:
        raise RecipeError(f"{where}: expected a recipe for {role}, found one for {' and '.join(recipe.roles)}; put it in the other "
                          "place, or leave this one out")
    passes = []
    for each in recipe.passes:
        loras = [replace(lora, **{name: {role: table[role]} if role in (table := getattr(lora, name)) else {}
                                  for name in ("files", "strength", "sha256")}) for lora in each.loras if role in lora.files]
        passes.append(replace(each, loras=tuple(loras)))
    outputs = tuple(replace(each, experts=(role,)) for each in recipe.outputs if role in each.experts)
    return replace(recipe, experts={role: recipe.experts[role]}, passes=tuple(passes), outputs=outputs)


def _made_by(told: embedded.Embedded, where: str) -> tuple[str, ...]:
    if told.merge == MERGE:
        return ()
    return (f"{os.path.basename(where)}: made by version {told.merge} of the arithmetic, this is {MERGE}: the bytes may differ",)
