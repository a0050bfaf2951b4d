"""Give each prompt its start image: by the name that its line states, by a number in the image's name, or in order.

Only names are compared here, no file is opened. A path that a line states is looked up by the caller, who may find it; else, as of
`--i C:\\pictures\\fox.png`, the last part counts, as the rest is a folder of whoever wrote the list: a file of that name among the
images that may be used. The number of `shot_007.png` is 7, the last digits of its name, and stands for the 7th prompt. In order
means as a person sorts: `2.png` before `10.png`.
"""
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ..errors import RecipeError
from .prompt_file import PromptFile

AUTO, BY_OPTION, BY_NUMBER, IN_ORDER = WAYS = ("auto", "by --i", "by number in name", "in order")
FAIL, SKIP, NONE = ON_MISSING = ("error", "skip", "none")
SHOWN = 5                                          # names in one message
NOTHING: Mapping[str, str] = MappingProxyType({})
DIGITS = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class Pairing:
    """images: place of a prompt -> name. missing: places that have none. notices: how it was done, and what was not used.
    only_stated: no prompt was offered an image but those whose line states one. looked: where images were looked for, in words."""

    images: Mapping[int, str]
    missing: tuple[int, ...]
    notices: tuple[str, ...] = ()
    only_stated: bool = False
    looked: str = "the images"


def pair(found: PromptFile, names: Iterable[str], way: str, *, are_files: bool = True,
         known: Mapping[str, str] = NOTHING) -> Pairing:
    """A start image for each prompt. names: of the images that may be used, in their order when they are no files of a folder.
    known: path that a line states -> name of the image that it was found to be; another's last part is looked up in `names`.

    auto: by --i where a line states one, the others by number when every one of them has its own, else in order. Images that are no
    files have no names of their own: they go in order, whatever lines state. Raises RecipeError for two images of one number.
    """
    names, stated = list(names), {place: line.image for place, line in enumerate(found.lines, 1) if line.image}
    places = list(range(1, len(found.lines) + 1))
    if are_files:
        names.sort(key=_as_sorted)
    else:
        way = IN_ORDER
    by_option = _by_option(stated, names, known) if way in (AUTO, BY_OPTION) else {}
    rest = [place for place in places if place not in (stated if way == AUTO else by_option)]
    free = [name for name in names if name not in by_option.values()]
    by_number = _by_number(rest, free, insist=way == BY_NUMBER) if way in (AUTO, BY_NUMBER) else {}
    if way == AUTO and len(by_number) < len(rest):
        by_number = {}
    in_order = dict(zip(rest, free, strict=False)) if way == IN_ORDER or (way == AUTO and not by_number) else {}
    images = {**by_option, **by_number, **in_order}
    told = [f"{len(each)} {how}" for each, how in ((by_option, BY_OPTION), (by_number, BY_NUMBER), (in_order, IN_ORDER)) if each]
    notices = [f"start images: {', '.join(told) or 'none'}"]
    if stated and way in (BY_NUMBER, IN_ORDER):
        notices.append(f"start images: --i is not used, {len(stated)} times, as images are paired {way}")
    if way != BY_OPTION and (unused := [name for name in names if name not in images.values()]):
        notices.append(f"start images: {len(unused)} of {len(names)} are not used: {', '.join(unused[:SHOWN])}"
                       f"{', ...' if len(unused) > SHOWN else ''}")
    return Pairing(images, tuple(place for place in places if place not in images), tuple(notices), way == BY_OPTION)


def settle(found: PromptFile, paired: Pairing, on_missing: str) -> tuple[set[int], list[str]]:
    """Places that are left out for want of an image, and what to tell. Raises RecipeError for the first, when asked to.

    A prompt that states no image needs one where images are paired otherwise too, and where others have one and it is to be left
    out or an error.
    """
    asked = [place for place in paired.missing if found.lines[place - 1].image]
    alone = paired.only_stated and (on_missing == NONE or bool(asked and not paired.images and on_missing == FAIL))
    counted = asked if alone else paired.missing
    if not counted:
        return set(), []
    line = found.lines[(asked or counted)[0] - 1]
    states = f"--i {line.image}" if line.image else f"{line.prompt[:40]!r}"
    whole = sum(bool(each.image) for each in found.lines) if alone else len(found.lines)
    count = f"{len(counted)} of {whole} prompts{' with --i' if alone else ''} have none"
    if on_missing == FAIL:
        raise RecipeError(f"{found.name}: line {line.number}: expected a start image for {states}, found none in {paired.looked} "
                          f"({count}); add images, or set on_missing_image to skip or none")
    fate = "left out" if on_missing == SKIP else "made without one"
    told = [f"start images: {count} and are {fate}, as in line {line.number}: {states}, looked for in {paired.looked}"]
    return set(paired.missing) if on_missing == SKIP else set(), told


def _by_option(stated: Mapping[int, str], names: list[str], known: Mapping[str, str]) -> dict[int, str]:
    wanted = {place: known.get(path) or path.replace("\\", "/").rpartition("/")[2] for place, path in stated.items()}
    return {place: name for place, name in wanted.items() if name in names or name in known.values()}


def _by_number(places: list[int], names: list[str], *, insist: bool) -> dict[int, str]:
    """Empty when two images have one number, unless `insist`: then it is an error."""
    numbered: dict[int, str] = {}
    for name in names:
        digits = DIGITS.findall(name.rpartition(".")[0] or name)
        if digits and (other := numbered.setdefault(int(digits[-1]), name)) != name:
            if insist:
                raise RecipeError(f"start images: expected one image of each number, found {other} and {name}; rename one, or pair "
                                  "in order")
            return {}
    return {place: numbered[place] for place in places if place in numbered}


def _as_sorted(name: str) -> list[tuple[int, str]]:
    """Key under which 2.png comes before 10.png."""
    return [(int(part), "") if part.isdecimal() and part.isascii() else (-1, part.lower())
            for part in re.split(r"([0-9]+)", name) if part]
