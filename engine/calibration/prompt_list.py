"""Turn prompts of a file into runs: defaults, sizes that a Wan model takes, a cheaper preset, and which of them are done already.

A run is known by what makes its result: prompt, negative prompt, seed, width, height, frames, steps, cfg and the content of its
start image. Its `prompt_id` is a hash of these, so that a session knows the same run again, whatever file or line it came from.

Sizes. The VAE makes one latent frame of the first frame and one of each 4 that follow, and one latent pixel of 8 x 8 pixels (Wan
2.1's, of the 14B models) or 16 x 16 (Wan 2.2's, of the 5B); the model takes 2 x 2 latent pixels as a token (comfy/ldm/wan/model.py,
patch_size (1, 2, 2)). So frames are 4n + 1, and width and height multiples of 16, for the 5B of 32, as the steps of ComfyUI's
WanImageToVideo and Wan22ImageToVideoLatent have it; of other sizes they cut off the rest without a word.

Low cost. 832 x 480 x 81 is 21 * 30 * 52 = 32760 tokens a forward pass, 480 x 288 x 33 is 9 * 18 * 30 = 4860: linear layers cost 6.7
times less, attention 45 times. Every token meets the same weights at the same sigmas, so a run still gives each layer thousands of
input vectors at every step; steps stay, because inputs change with sigma and the experts split by it. Whether the largest input at
this size is that of the size you render was not measured: leave a margin, or record a few prompts as given, too.
"""
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ..bases.prefixes import HIGH, LOW
from ..errors import RecipeError
from .prompt_file import MOST_SEED, PromptFile, PromptLine
from .run import Run

SIDE, SIDE_5B, FRAMES = 16, 32, 4                  # pixels a token; frames a latent frame after the first
LOW_AREA, LOW_FRAMES = 480 * 272, 33               # a third of the pixels of 832 x 480, two fifths of its 81 frames
AS_GIVEN, LOW_COST = "as given", "low cost"
EXPERTS, LONE = (HIGH, LOW), "model"


@dataclass(frozen=True)
class Defaults:
    """What a prompt gets that its line does not say. seed: of the first prompt, each further one gets one more."""

    negative: str
    width: int                                     # pixels
    height: int
    frames: int
    seed: int
    steps: int
    cfg: float


@dataclass(frozen=True)
class Entry:
    """One run that a sampler can make. place: in the list, from 1. image: its name, "" for none; image_digest: SHA-256 of it."""

    place: int
    prompt: str
    negative: str
    width: int
    height: int
    frames: int
    seed: int
    steps: int
    cfg: float
    image: str = ""
    image_digest: str = ""

    @property
    def prompt_id(self) -> str:
        """16 hex digits that tell this run from every other; the same for the same run, whatever its place or its image's name."""
        facts = [self.prompt, self.negative, self.width, self.height, self.frames, self.seed, self.steps, float(self.cfg),
                 self.image_digest]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    @property
    def tokens(self) -> int:
        """Tokens of one forward pass of a 14B model."""
        return self._tokens(SIDE)

    @property
    def tokens_5b(self) -> int:
        """The same of the 5B; 0 for a size that it does not take."""
        return 0 if self.width % SIDE_5B or self.height % SIDE_5B else self._tokens(SIDE_5B)

    def _tokens(self, side: int) -> int:
        return ((self.frames - 1) // FRAMES + 1) * (self.width // side) * (self.height // side)


def entries(found: PromptFile, defaults: Defaults, preset: str = AS_GIVEN) -> list[Entry]:
    """A run of each line, in order, without images. Raises RecipeError, naming the line, for a size that Wan does not have."""
    made = []
    for place, line in enumerate(found.lines, 1):
        entry = _entry(place, line, defaults)
        _check_size(f"{found.name}: line {line.number}", entry)
        made.append(low_cost(entry) if preset == LOW_COST else entry)
    return made


def _entry(place: int, line: PromptLine, defaults: Defaults) -> Entry:
    given = {name: getattr(line, name) for name in ("negative", "width", "height", "frames", "seed", "steps", "cfg")}
    usual = {**vars(defaults), "seed": (defaults.seed + place - 1) % (MOST_SEED + 1)}
    return Entry(place, line.prompt, **{name: usual[name] if value is None else value for name, value in given.items()})


def _check_size(where: str, entry: Entry) -> None:
    for name, value in (("width", entry.width), ("height", entry.height)):
        if value % SIDE or value < SIDE:
            near = max(SIDE, round(value / SIDE) * SIDE)
            raise RecipeError(f"{where}: expected a {name} that is a multiple of {SIDE}, found {value}; take {near}")
    if entry.frames % FRAMES != 1:
        near = max(1, round((entry.frames - 1) / FRAMES) * FRAMES + 1)
        raise RecipeError(f"{where}: expected frames of 4n + 1, as 33 or 81, found {entry.frames}; take {near}")


def low_cost(entry: Entry) -> Entry:
    """The same run at about 480 x 272 pixels and up to 33 frames: its shape, to the nearest multiples of 32, as the 5B needs.

    Never more tokens than before; steps, seed and all else stay.
    """
    factor = math.sqrt(LOW_AREA / (entry.width * entry.height))
    cheap = replace(entry, frames=min(entry.frames, LOW_FRAMES))
    if factor < 1:
        width, height = (max(SIDE_5B, round(side * factor / SIDE_5B) * SIDE_5B) for side in (entry.width, entry.height))
        cheap = replace(cheap, width=min(width, entry.width), height=min(height, entry.height))
    return cheap


def odd_for_5b(found: Iterable[Entry]) -> list[int]:
    """Places of the entries whose sizes the 14B models take and the 5B does not."""
    return [entry.place for entry in found if not entry.tokens_5b]


def costs(found: list[Entry]) -> str:
    """Tokens of one forward pass, least to most, in words. found: at least one."""
    counts = {entry.tokens for entry in found}, {entry.tokens_5b for entry in found} - {0}
    whole, *small = (" to ".join(map(str, sorted({min(each), max(each)}))) for each in counts if each)
    return f"{whole} tokens a forward pass of a 14B model{f', {small[0]} of the 5B' if small else ''}"


def repeated(found: Iterable[Entry]) -> list[str]:
    """Which prompts are one run, seed and all: a session counts them once."""
    places: dict[str, list[int]] = {}
    for entry in found:
        places.setdefault(entry.prompt_id, []).append(entry.place)
    return [f"prompts {', '.join(map(str, each[:-1]))} and {each[-1]} are one run, seed and all, and count once: give each its --d"
            for each in places.values() if len(each) > 1]


def done(runs: Iterable[Run], experts: tuple[str, ...] = EXPERTS) -> set[str]:
    """prompt_ids that nothing is left to be recorded of: finished once by each of `experts`, or by a lone `model`."""
    finished: dict[str, set[str]] = {}
    for run in runs:
        finished.setdefault(run.facts.prompt_id, set()).update({run.role} if run.finished else ())
    wanted = set(experts)
    return {prompt_id for prompt_id, roles in finished.items() if wanted <= roles or LONE in roles}


def choose(made: list[Entry], first: int, limit: int, skipped: set[str]) -> tuple[list[Entry], int]:
    """What is left from place `first` on without those prompt_ids, the first `limit` of it (0: all), and how many were skipped.

    So each queue with the same limit takes the next ones that are not done. Raises RecipeError when `first` is behind the end.
    """
    if made and not 1 <= first <= made[-1].place:
        raise RecipeError(f"prompt list: first: expected 1 to {made[-1].place}, the number of prompts, found {first}; take less")
    behind = [entry for entry in made if entry.place >= first]
    left = [entry for entry in behind if entry.prompt_id not in skipped]
    return left[:limit or None], len(behind) - len(left)
