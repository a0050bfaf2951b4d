"""The words in a file's or folder's name that tell high noise from low noise, and their opposites in the same spelling.

Read at word and camel-case boundaries: "slow", "flow" and "highlight" contain no such word, "low_rank" speaks of something else.
"""
import re
from dataclasses import dataclass
from itertools import pairwise

OPPOSITE = {"high": "low", "low": "high", "hn": "ln", "ln": "hn", "h": "l", "l": "h", "1": "2", "2": "1"}
ENDINGS = re.compile(r"(\.safetensors\.index\.json|\.safetensors|\.gguf|\.json)$", re.IGNORECASE)
# The v of "i2v" is a word of its own, then runs of letters and camel-case parts; digits and signs only separate.
WORD = re.compile(r"(?<=2)[vV]|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[A-Z]")
GLUED = re.compile(r"(?:(?<![a-z])|(?<=2v))(high|low)(?=noise)", re.IGNORECASE)
TRANSFORMER = re.compile(r"(?<![a-z])transformer[-_]?([12])(?!\d)", re.IGNORECASE)   # ai-toolkit's and diffusers' experts
LETTER = re.compile(r"(?<![A-Za-z0-9])[HhLl](?![A-Za-z0-9])")
# In front of these, high and low speak of something else than noise ("rank" only without a number: HIGH_rank64 is an expert).
ELSEWHERE = {
    "res", "resolution", "quality", "rank", "vram", "ram", "mem", "memory", "light", "lights", "lighting", "fps", "poly", "detail",
    "details", "detailed", "key", "contrast", "speed", "motion", "angle", "def", "definition", "bitrate", "frequency", "freq",
    "fidelity", "dynamic", "dynamics", "rise", "cut",
}
SEPARATOR = re.compile(r"[\W_]*")
NUMBER = re.compile(r"[\W_]*\d")


@dataclass(frozen=True)
class RoleWord:
    """Where the word stands in the name, and what it says: "high" or "low"."""

    start: int
    stop: int
    says: str


def find_words(name: str) -> list[RoleWord]:
    """Role words of a name. Where it says high or low *noise*, a high or low that stands alone is about something else (in "high
    and low noise" none does)."""
    stem = ENDINGS.sub("", name)
    words, alone, noise = list(WORD.finditer(stem)), [], []
    for place, word in enumerate(words):
        text = word[0].lower()
        if text in ("high", "low"):
            following, *further = [*_following(stem, words[place:]), ""]
            found = RoleWord(*word.span(), text)
            if following == "noise" or (following == "and" and "".join(further).startswith(OPPOSITE[text] + "noise")):
                noise.append(found)
            elif following not in ELSEWHERE or (following == "rank" and NUMBER.match(stem, words[place + 1].end())):
                alone.append(found)
        elif text in ("hn", "ln"):
            alone.append(RoleWord(*word.span(), "high" if text == "hn" else "low"))
    alone += [RoleWord(*found.span(1), "high" if found[1] == "1" else "low") for found in TRANSFORMER.finditer(stem)]
    noise += [RoleWord(*found.span(1), found[1].lower()) for found in GLUED.finditer(stem)]
    return sorted(set(noise or alone), key=lambda word: word.start)


def _following(stem: str, words: list[re.Match]) -> list[str]:
    """The words after the first, as far as only signs stand between them."""
    found = []
    for word, after in pairwise(words):
        if not SEPARATOR.fullmatch(stem, word.end(), after.start()):
            break
        found.append(after[0].lower())
    return found


def find_letters(name: str) -> list[RoleWord]:
    """Single letters H and L between separators: weak, to be believed only where the opposite file exists."""
    return [RoleWord(*found.span(), "high" if found[0] in "Hh" else "low") for found in LETTER.finditer(ENDINGS.sub("", name))]


def swap(name: str, words: list[RoleWord]) -> str:
    """`name` with each of `words` turned into its opposite, in the same case."""
    for word in reversed(words):
        old = name[word.start:word.stop]
        new = OPPOSITE[old.lower()]
        spelled = new.upper() if old.isupper() else new.capitalize() if old[0].isupper() else new
        name = name[:word.start] + spelled + name[word.stop:]
    return name
