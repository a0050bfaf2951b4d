"""Which expert a file is for, high noise or low noise; which file is its other half; whether two files are a pair.

Nothing inside a weight tells: the experts have equal shapes. So the evidence is the trainer's metadata, then names.
"""
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..errors import SourceError
from .prefixes import HIGH, LOW
from .role_words import find_letters, find_words, swap
from .source import Source
from .variant import detect

ROLES = {"high": HIGH, "low": LOW}
RANGE = re.compile(r"\s*(\d+(?:\.\d*)?)\s*,\s*(\d+(?:\.\d*)?)\s*")
DIFFUSERS = {"transformer": "transformer_2", "transformer_2": "transformer"}  # folders of a diffusers repository: high, low


@dataclass(frozen=True)
class Role:
    """`role` is "high_noise", "low_noise" or None for unknown or both; `evidence` says in words what it rests on."""

    role: str | None
    evidence: str


def role_of(path: str, metadata: Mapping[str, str], exists: Callable[[str], bool] = os.path.exists) -> Role:
    """Role by the trainer's timestep range, else by the file's name, else by the nearest folder whose name says one.

    Bare letters (`_H`, `-L-`) count only when the file with the opposite letter `exists`.
    """
    folder, name = os.path.split(os.path.normpath(path))
    named = by_range(metadata) or by_words("file name", name) or by_letters(folder, name, exists) or by_folder(folder, exists)
    return named or Role(None, "no word for high or low noise in metadata, file name or folder")


def partner(path: str, exists: Callable[[str], bool] = os.path.exists) -> str | None:
    """The other expert's file: the role word swapped in its own spelling, in the name, the folders or both; None if none exists."""
    folder, name = os.path.split(os.path.normpath(path))
    swapped = [swap(name, words) for words in (find_words(name), find_letters(name)) if words]
    for other_folder in _other_folders(folder, exists):
        for other in [*swapped, name]:
            found = os.path.join(other_folder, other)
            if (other_folder, other) != (folder, name) and exists(found):
                return found
    return None


def check_pair(high: Source, low: Source) -> None:
    """Raises SourceError when the two cannot be the experts of one model: one file twice, swapped, other tasks or sizes."""
    where = f"{high.path} and {low.path}"
    same_file = all(os.path.exists(source.path) for source in (high, low)) and os.path.samefile(high.path, low.path)
    if same_file or high.identity() == low.identity():
        raise SourceError(f"{where}: expected two experts, found the same file twice; choose the low-noise file as low_noise")
    roles = role_of(high.path, high.metadata), role_of(low.path, low.metadata)
    if (roles[0].role, roles[1].role) == (LOW, HIGH):
        found = f"{roles[0].evidence}, {roles[1].evidence}"
        raise SourceError(f"{where}: expected high_noise and low_noise, found them swapped ({found}); swap the two files")
    if roles[0].role and roles[0].role == roles[1].role:
        found = f"{roles[0].evidence}, {roles[1].evidence}"
        raise SourceError(f"{where}: expected one of each, found {roles[0].role} twice ({found}); choose the other half")
    first, second = detect(high), detect(low)
    for field in ("dim", "num_layers", "ffn_dim", "task", "in_dim", "out_dim", "comfy_class"):
        one, other = getattr(first, field), getattr(second, field)
        if one != other:
            found = f"{first.title} and {second.title} ({field} {one} and {other})"
            raise SourceError(f"{where}: expected two experts of one model, found {found}; choose two files of the same model")


def by_range(metadata: Mapping[str, str]) -> Role | None:
    """musubi-tuner's "min,max" of 1000 steps: the border is 900 for I2V and 875 for T2V (Wan2.2 configs, boundary)."""
    text = metadata.get("modelspec.timestep_range", "")
    found = RANGE.fullmatch(text)
    if not found:
        return None
    first, last = float(found[1]), float(found[2])
    evidence = f"metadata modelspec.timestep_range {text.strip()!r}"
    if first >= 800 and last >= 999:
        return Role(HIGH, evidence)
    return Role(LOW, evidence) if first <= 1 and 800 <= last <= 950 else None


def by_words(where: str, name: str) -> Role | None:
    """What the words of a name say; a Role of None where it says both, None where it says nothing."""
    said = {word.says for word in find_words(name)}
    if len(said) == 2:
        return Role(None, f"{where} {name!r} says both high and low")
    return Role(ROLES[said.pop()], f"{where} {name!r}") if said else None


def by_letters(folder: str, name: str, exists: Callable[[str], bool]) -> Role | None:
    """What a bare H or L in a file's name says beside a file that differs in it alone."""
    letters = find_letters(name)
    other = swap(name, letters)
    if len({letter.says for letter in letters}) == 1 and exists(os.path.join(folder, other)):
        return Role(ROLES[letters[0].says], f"file name {name!r} beside {other!r}")
    return None


def by_folder(folder: str, exists: Callable[[str], bool]) -> Role | None:
    """The two nearest folders, nearest first; further up, names are about the machine."""
    above, near = os.path.split(folder)
    for name in (near, os.path.basename(above)):
        found = by_words("folder", name)
        if found:
            return found
    if _has_twin(folder, exists):
        return Role(LOW if near == "transformer_2" else HIGH, f"folder {near!r} of a diffusers pair")
    return None


def _other_folders(folder: str, exists: Callable[[str], bool]) -> list[str]:
    """The folder itself, then with the nearest, the next and both names swapped, then the other half of a diffusers pair."""
    above, near = os.path.split(folder)
    far, middle = os.path.split(above)
    near_swapped, middle_swapped = swap(near, find_words(near)), swap(middle, find_words(middle))
    found = [folder, os.path.join(above, near_swapped), os.path.join(far, middle_swapped, near),
             os.path.join(far, middle_swapped, near_swapped)]
    if _has_twin(folder, exists):
        found.append(os.path.join(above, DIFFUSERS[near]))
    return list(dict.fromkeys(found))


def _has_twin(folder: str, exists: Callable[[str], bool]) -> bool:
    above, near = os.path.split(folder)
    return near in DIFFUSERS and exists(os.path.join(above, DIFFUSERS[near]))
