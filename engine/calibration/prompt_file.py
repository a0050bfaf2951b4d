"""Read prompt files in musubi-tuner's form: one prompt a line, what differs from the defaults behind it.

    A cat walks on grass. --w 832 --h 480 --f 81 --d 42 --s 20 --n blurry --l 5.0

Its rules, as `wan_generate_video.py` (`--from_file`, June 2026) applies them: a line is stripped; an empty one and one that begins
with # are no prompts; the rest is split at every " --", the first piece is the prompt; in each other piece the option ends at its
first blank, and what follows is its value, to the end of the piece. Options are lower case, an option given twice counts as last
given, `--l` and `--g` both set the guidance scale (cfg), so the last of the two counts. Options it does not know it ignores.

Read otherwise: a byte order mark is no part of the first prompt; a value that is no number is an error with file, line and option;
a line that begins with an option is an error, as its prompt would be that option; and nothing is ignored in silence: known options
that this pack has no use for (`--fs`, `--cn`, `--ci`, ...) and unknown ones stay with the prompt, and `notices` names them.
`training/sampling_prompts.py` reads the same files for samples while training, with `--l` alone as cfg and `--g` for other models.
"""
import math
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import RecipeError

LARGEST = 1 << 24                                  # bytes: far above any list of prompts, below what would fill the memory
MOST_SEED = (1 << 64) - 1                          # noise_seed of ComfyUI's samplers
MOST_STEPS, MOST_CFG, MOST_SIZE = 10000, 100.0, 16384   # of ComfyUI's KSampler, and nodes.MAX_RESOLUTION
WHOLE = {"w": ("width", 1, MOST_SIZE), "h": ("height", 1, MOST_SIZE), "f": ("frames", 1, MOST_SIZE), "d": ("seed", 0, MOST_SEED),
         "s": ("steps", 1, MOST_STEPS)}
CFG, TEXT = ("l", "g"), {"n": "negative", "i": "image"}
UNUSED = {"fs": "flow shift", "ei": "end image", "cn": "control video", "ci": "control image", "cim": "control mask",
          "of": "one frame inference",             # known to musubi-tuner
          "": "text behind a -- that stands alone"}
MEANT = {"seed": "d", "steps": "s", "width": "w", "height": "h", "cfg": "l", "frames": "f", "negative": "n", "image": "i"}
SWALLOWED = re.compile(r"(?:^|\S|\t)--(?:[whfdslgin]|fs|ei|cn|ci|cim|of)\s", re.ASCII)   # not behind a blank: no option


@dataclass(frozen=True)
class PromptLine:
    """One prompt as the file has it; None: the file does not say. number: of its line, from 1."""

    number: int
    prompt: str
    negative: str | None = None
    width: int | None = None                       # pixels
    height: int | None = None
    frames: int | None = None
    seed: int | None = None
    steps: int | None = None
    cfg: float | None = None
    image: str | None = None                       # a path on the machine of whoever wrote the file
    kept: tuple[tuple[str, str], ...] = ()         # options that nothing here uses, and their values


@dataclass(frozen=True)
class PromptFile:
    """name: for messages. notices: what was kept without being used, and what looks like a slip."""

    name: str
    lines: tuple[PromptLine, ...]
    notices: tuple[str, ...] = ()


def read(path: str) -> PromptFile:
    """`parse` of a file in UTF-8. Raises RecipeError, also when it cannot be read."""
    name = Path(path).name
    try:
        with open(path, "rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as cause:
        raise RecipeError(f"{name}: expected a text file, but it cannot be read: {cause.strerror}; check its rights") from cause
    if len(raw) > LARGEST:
        raise RecipeError(f"{name}: expected a list of prompts of up to {LARGEST >> 20} MiB; choose another file")
    try:
        return parse(raw.decode("utf-8"), name)
    except UnicodeDecodeError as cause:
        line = 1 + raw.count(b"\n", 0, cause.start)
        raise RecipeError(f"{name}: line {line}: expected UTF-8, found byte {raw[cause.start]:#04x}; save it as UTF-8") from None


def parse(text: str, name: str) -> PromptFile:
    """Prompts of a text, in its order; none at all is no error. Raises RecipeError with name, line and option."""
    rows = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")   # as Python reads a text file
    lines, slips = [], []
    for number, row in enumerate(rows, 1):
        row = row.strip()
        if row and not row.startswith("#"):
            lines.append(_line(f"{name}: line {number}", number, row, slips))
    return PromptFile(name, tuple(lines), (*_kept(name, lines), *slips))


def _line(where: str, number: int, row: str, slips: list[str]) -> PromptLine:
    prompt, *pieces = row.split(" --")
    if prompt.startswith("--"):
        raise RecipeError(f"{where}: expected a prompt before its options, found {prompt[:40]!r}; write the prompt first")
    line, seen, kept = PromptLine(number, prompt.strip()), [], []
    for piece in pieces:
        flag, _, value = piece.partition(" ")
        flag, value = flag.strip(), value.strip()
        if not piece.strip():
            slips.append(f"{where}: a -- without an option is left out")
        elif flag in TEXT:
            line = replace(line, **{TEXT[flag]: value})
        elif flag in WHOLE:
            line = replace(line, **_whole(where, flag, value))
        elif flag in CFG:
            line = replace(line, cfg=_cfg(where, flag, value))
        else:
            kept.append((flag, value))
        seen.append("l" if flag in CFG else flag)
    slips += [f"{where}: --{flag}{' or --g' if flag == 'l' else ''} is given {times} times, the last one counts"
              for flag, times in Counter(seen).items() if times > 1 and (flag in WHOLE or flag in TEXT or flag in CFG)]
    slips += [f"{where}: {found.group().strip()} is text here: an option begins behind a blank"
              for each in (line.prompt, line.negative or "") if (found := SWALLOWED.search(each))]
    return replace(line, kept=tuple(kept))


def _whole(where: str, flag: str, value: str) -> dict[str, int]:
    field, least, most = WHOLE[flag]
    try:
        number = int(value)
    except ValueError:
        raise RecipeError(f"{where}: --{flag}: expected a whole number as {field}, found {value[:40]!r}; correct it") from None
    if not least <= number <= most:
        raise RecipeError(f"{where}: --{flag}: expected {field} of {least} to {most}, found {value[:40]}; correct it")
    return {field: number}


def _cfg(where: str, flag: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0.0 <= number <= MOST_CFG:              # nan is not
        raise RecipeError(f"{where}: --{flag}: expected cfg of 0 to {MOST_CFG:g}, found {value[:40]!r}; correct it")
    return number


def _kept(name: str, lines: list[PromptLine]) -> list[str]:
    """A line for each option that is kept unused: where it stands, and its first value."""
    found: dict[str, list[tuple[int, str]]] = {}
    for line in lines:
        for flag, value in line.kept:
            found.setdefault(flag, []).append((line.number, value))
    return [f"{name}: line {places[0][0]}{f' and {len(places) - 1} more' if len(places) > 1 else ''}: --{flag} "
            f"({UNUSED.get(flag) or _unknown(flag)}) is kept, and not used{f': {places[0][1][:60]}' if places[0][1] else ''}"
            for flag, places in found.items()]


def _unknown(flag: str) -> str:
    """Of an option that musubi-tuner has not; a word that one of its letters stands for names that."""
    word = flag.partition("=")[0].lower()
    return f"unknown: {word} is --{MEANT[word]}" if word in MEANT else "unknown"
