"""Recipes made of recipes: the same without a LoRA, two halves as one, and the check that no LoRA is merged twice."""
import os
import re
from collections.abc import Mapping
from dataclasses import replace

from ..bases.role_words import find_words, swap
from ..errors import RecipeError
from . import embedded
from .interleave import interleave
from .output import join_outputs
from .recipe import Recipe, parse
from .recipe_parts import LoraEntry, Pass

NUMBER = re.compile(r"#?(\d{1,3})")
HASH = re.compile(r"[0-9a-f]{8,64}")               # a hash may be shortened to 8 digits, as AutoV2 and Civitai do (theirs has 10)


def without(recipe: Recipe, *what: str) -> Recipe:
    """The recipe without some LoRAs. what: each a number as `listing` shows it, a file's name, or the start of its SHA-256.

    Numbers count in the recipe as it was given. A pass that is left empty stays, so that the others keep their numbers.
    Raises RecipeError: nothing is meant by it, or more than one LoRA is, with all there are.
    """
    gone = {_find(recipe, each) for each in what}
    numbers, passes = iter(range(1, 1 + sum(len(each.loras) for each in recipe.passes))), []
    for each in recipe.passes:
        passes.append(replace(each, loras=tuple([lora for lora in each.loras if next(numbers) not in gone])))
    return replace(recipe, passes=tuple(passes))


def listing(recipe: Recipe) -> list[str]:
    """A line per LoRA: number, names, pass, and where it is known the start of its hash."""
    lines = []
    for number, (index, lora) in enumerate(_entries(recipe), 1):
        hashes = " ".join(dict.fromkeys(sha256[:10] for sha256 in lora.sha256.values()))
        where = recipe.passes[index].name or f"pass {index + 1}"
        lines.append(f"#{number} {names(lora)} ({', '.join(lora.files)}; {where}{'; ' + hashes if hashes else ''})")
    return lines


def names(lora: LoraEntry) -> str:
    """File names of a LoRA without their folders."""
    return " + ".join(dict.fromkeys(_base(path) for path in lora.files.values()))


def _entries(recipe: Recipe) -> list[tuple[int, LoraEntry]]:
    return [(index, lora) for index, each in enumerate(recipe.passes) for lora in each.loras]


def _base(path: str) -> str:
    return re.split(r"[/\\]", path)[-1]


def _find(recipe: Recipe, what: str) -> int:
    """Number of the one LoRA that is meant. Exact names come first, so that `style` is not also `Style`."""
    asked, entries = what.strip(), list(enumerate((lora for _, lora in _entries(recipe)), 1))
    number = NUMBER.fullmatch(asked)
    if number:
        found = [place for place, _ in entries if place == int(number[1])]
    else:
        found = _named(entries, asked) or _hashed(entries, asked.lower().removeprefix(embedded.HASHED))
    if len(found) == 1:
        return found[0]
    those = [line for place, line in enumerate(listing(recipe), 1) if place in found] or listing(recipe) or ["no LoRA at all"]
    raise RecipeError(f"without {asked!r}: expected one LoRA of the recipe, found {'several' if found else 'none'}; name one of "
                      f"them by its number: {'; '.join(those)}")


def _named(entries: list[tuple[int, LoraEntry]], asked: str) -> list[int]:
    def meant(lora: LoraEntry, spell) -> bool:
        bases = {_base(path) for path in lora.files.values()}
        return spell(_base(asked)) in {spell(each) for base in bases for each in (base, os.path.splitext(base)[0])}

    exact = [place for place, lora in entries if meant(lora, str)]
    return exact or [place for place, lora in entries if meant(lora, str.casefold)]


def _hashed(entries: list[tuple[int, LoraEntry]], asked: str) -> list[int]:
    is_hash = HASH.fullmatch(asked)
    return [place for place, lora in entries if is_hash and any(each.startswith(asked) for each in lora.sha256.values())]


def join(high: Recipe, low: Recipe) -> Recipe:
    """One recipe for the pair from one for each expert. Passes of equal number and rules become one, and so do LoRAs whose names
    are partners, where that leaves the order in either half as it is: slerp, rotations and ComfyUI's rounding depend on it; and
    outputs that are made alike, each with the layers of both. What is said of the whole merge must be the same in both. Raises
    RecipeError where it is not.
    """
    for name in ("compat", "normalize", "strict", "strict_share", "allow_twice", "allow_quantized_source", "title_version", "date"):
        one, other = getattr(high, name), getattr(low, name)
        if one != other:
            raise RecipeError(f"{name}: expected the same in the recipes of both experts, found {one!r} for high_noise and "
                              f"{other!r} for low_noise; make them equal")
    if set(high.roles) & set(low.roles):
        raise RecipeError(f"experts: expected one recipe for high_noise and one for low_noise, found {' and '.join(high.roles)} "
                          f"and {' and '.join(low.roles)}; give each expert's own recipe")
    if high.mix or low.mix:
        raise RecipeError("mix: expected recipes without mixed checkpoints to join, found one with; merge the checkpoints first")
    passes: list[Pass] = []
    longest = max(len(high.passes), len(low.passes))
    for one, other in zip(_padded(high, longest), _padded(low, longest), strict=True):
        passes += _join_passes(one, other)
    experts = {role: {**high.experts, **low.experts}[role] for role in ("high_noise", "low_noise")}
    outputs = join_outputs((*high.outputs, *low.outputs))
    return parse(replace(high, experts=experts, passes=tuple(passes), outputs=outputs).to_json())


def _padded(recipe: Recipe, count: int) -> list[Pass]:
    return [*recipe.passes, *[Pass(())] * (count - len(recipe.passes))]


def _join_passes(high: Pass, low: Pass) -> list[Pass]:
    """One pass where the rules are equal or one side is empty, else both; the name of the first."""
    if not low.loras or not high.loras:
        return [high if high.loras else low]
    if replace(high, loras=(), name="") != replace(low, loras=(), name=""):
        return [high, low]
    return [replace(high, loras=tuple([_one(*both) for both in interleave(high.loras, low.loras, _are_partners)]))]


def _one(high: LoraEntry | None, low: LoraEntry | None) -> LoraEntry:
    """An entry for both experts, or that of the only one."""
    if high is None or low is None:
        return high or low
    return replace(high, **{name: getattr(high, name) | getattr(low, name) for name in ("files", "strength", "sha256")})


def _are_partners(high: LoraEntry, low: LoraEntry) -> bool:
    """One LoRA's two halves, or one file for both: names equal but for the role word, and merged in the same way."""
    rules = [(each.method, each.resolved, each.scope, each.rs_lora, each.protected) for each in (high, low)]
    one, other = names(high), names(low)
    return rules[0] == rules[1] and (one == other or swap(one, find_words(one)) == other)


def check_twice(recipe: Recipe, sha256: Mapping[str, str], base_metadata: Mapping[str, Mapping[str, str]]) -> None:
    """Raise RecipeError when a LoRA would be in an expert twice, and the recipe does not say allow_twice.

    sha256: LoRA path -> hash; base_metadata: role -> metadata of the base, which tells the LoRAs that it was made with, if this
    pack made it. A LoRA of strength 0 is not merged and does not count.
    """
    if recipe.allow_twice:
        return
    for role in recipe.roles:
        baked, seen = embedded.baked(base_metadata.get(role, {})), {}
        for index, each in enumerate(recipe.passes):
            for lora in embedded.given(each, role):
                path, where = lora.files[role], each.name or f"pass {index + 1}"
                digest = sha256[path]
                if digest in baked:
                    called = f" (as {baked[digest]})" if baked[digest] not in ("", _base(path)) else ""
                    raise RecipeError(f"{where}: {_base(path)}: is in the {role} base already{called}, by its SHA-256 "
                                      f"{digest[:10]}; leave it out, take the base it was made from, or set allow_twice")
                if digest in seen:
                    raise RecipeError(f"{where}: {_base(path)}: is merged into {role} twice, here and in {seen[digest]}, by its "
                                      f"SHA-256 {digest[:10]}; leave one out, or set allow_twice")
                seen[digest] = f"{where} as {_base(path)}"
