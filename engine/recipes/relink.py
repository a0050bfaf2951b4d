"""Find the files of a recipe on this machine: by path, by name, by name in other case, by SHA-256; and say how each was found.

found: under the path or the relative name that the recipe gives. moved: elsewhere. ambiguous: several files of that name and of
different content. missing. Nothing is guessed: what is ambiguous or missing is the user's to decide. A hash in the recipe is
believed over a name: a file of the name and of other content is not the LoRA that was meant.
"""
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..errors import RecipeError
from .embedded import HASHED, HEX
from .library import Library, slashed
from .recipe import Recipe
from .recipe_parts import LoraEntry

FOUND, MOVED, AMBIGUOUS, MISSING = "found", "moved", "ambiguous", "missing"


@dataclass(frozen=True)
class Link:
    """Where one file of the recipe is. asked: as the recipe has it; path: None unless found or moved; how: in words."""

    asked: str
    sha256: str | None
    state: str
    how: str
    path: str | None = None
    candidates: tuple[str, ...] = ()               # relative names, where it is ambiguous


def find(asked: str, sha256: str | None, library: Library) -> Link:
    """One file of a recipe. asked: path, relative name, or `sha256:` and the hash; sha256: None when it is not known."""
    if asked.startswith(HASHED):
        sha256, asked_name = asked.removeprefix(HASHED).lower(), ""
    else:
        asked_name = slashed(asked)
    if sha256 is not None and not HEX.fullmatch(sha256):
        raise RecipeError(f"{asked}: sha256: expected 64 hexadecimal digits, found {sha256[:80]!r}, correct it or remove it")
    other = None
    for state, how, names in _places(asked, asked_name, library):
        link, other_here = _choose(asked, sha256, library, (state, how, names))
        other = other or other_here
        if link:
            return link
    same = library.hashed(sha256) if sha256 else []
    if same:
        return Link(asked, sha256, MOVED, f"by its SHA-256, as {same[0]}", library.files[same[0]])
    why = "no file of that name here" if asked_name else "no file here is known to have this SHA-256"
    if other:
        why = f"{other} has the name, but another content than the recipe's SHA-256 says"
    if sha256 and not library.search:
        why += "; a search by SHA-256 reads every LoRA once"
    return Link(asked, sha256, MISSING, why)


def _places(asked: str, name: str, library: Library) -> Iterable[tuple[str, str, list[str]]]:
    """Where to look, best first: (state, how, paths or relative names)."""
    if not name:
        return
    path = library.at(asked)
    yield FOUND, "at its path", [path] if path else []
    yield FOUND, "by its relative name", [name] if name in library.files else []
    tails = [each for each in library.files if "/" in each and name.endswith("/" + each)]
    yield MOVED, "by folder and name", tails
    base = name.rsplit("/", 1)[-1]
    yield MOVED, "by its file name", library.named(base)
    yield MOVED, "by its file name in other case", library.named(base, str.casefold)


def _choose(asked: str, sha256: str | None, library: Library, place: tuple[str, str, list[str]]) -> tuple[Link | None, str | None]:
    """(the link, if one of the files is meant; a file of the name but of other content)."""
    state, how, names = place
    paths = {name: library.files.get(name, name) for name in names}
    if sha256 is not None:
        right = [name for name in names if library.cache.sha256(paths[name], library.tick) == sha256]
        if not right:
            return None, next(iter(names), None)
        names = right[:1]
    elif len(names) > 1 and not _are_same(list(paths.values()), library):
        return Link(asked, None, AMBIGUOUS, f"{len(names)} different files {how}", None, tuple(names)), None
    if not names:
        return None, None
    shown = "" if state == FOUND else f", as {names[0]}"
    return Link(asked, sha256, state, how + shown, paths[names[0]]), None


def _are_same(paths: list[str], library: Library) -> bool:
    """True for copies of one file; hashed only when their sizes are equal."""
    sizes = {os.path.getsize(path) for path in paths}
    return len(sizes) == 1 and len({library.cache.sha256(path, library.tick) for path in paths}) == 1


def relink(recipe: Recipe, library: Library) -> tuple[Recipe, list[Link]]:
    """The recipe with every LoRA's path on this machine, and how each was found, in order. What is ambiguous or missing keeps the
    path that the recipe has."""
    links: dict[tuple[str, str | None], Link] = {}

    def path_of(lora: LoraEntry, role: str) -> str:
        key = (lora.files[role], lora.sha256.get(role))
        links[key] = links.get(key) or find(*key, library)
        return links[key].path or lora.files[role]

    def found(lora: LoraEntry) -> LoraEntry:
        return replace(lora, files={role: path_of(lora, role) for role in lora.files})

    passes = [replace(each, loras=tuple([found(lora) for lora in each.loras])) for each in recipe.passes]
    return replace(recipe, passes=tuple(passes)), list(links.values())


def table(links: list[Link]) -> list[str]:
    """A line per file: state, name, how; for an ambiguous one its candidates below it."""
    lines = []
    for link in links:
        lines.append(f"{link.state}: {_short(link.asked)}: {link.how}")
        lines += [f"  {name}" for name in link.candidates]
    return lines


def check(links: list[Link]) -> None:
    """Raise RecipeError when a file is ambiguous or missing, naming all of them and the ways out."""
    bad = [link for link in links if link.path is None]
    if bad:
        told = "; ".join(f"{link.state}: {_short(link.asked)} ({', '.join([link.how, *link.candidates])})" for link in bad)
        raise RecipeError(f"{len(bad)} of {len(links)} LoRAs cannot be linked: {told}; put the file into a LoRA folder, write its "
                          "relative name into the recipe, search by SHA-256, or leave it out with `without`")


def _short(asked: str) -> str:
    return asked[:len(HASHED) + 10] if asked.startswith(HASHED) else re.split(r"[/\\]", asked)[-1]
