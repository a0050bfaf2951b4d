"""Which prompts the Prompt Lists of this process gave out last, so that Calibrate can tell whose run a sampler makes.

Text does not reach a sampler, only what the text encoder made of it. But a sampler has a seed, and a Prompt List gives each prompt
its own; with the size it tells prompts apart. Where two prompts answer to one run, none is named: a wrong name would let skip_done
leave out a prompt that was never recorded.
"""
from collections.abc import Collection, Iterable

from ..engine.calibration.prompt_list import Entry

MOST_LISTS, MOST_ENTRIES = 16, 4096                # a workflow has one list; the bound is for a server that runs for weeks
_lists: dict[str, tuple[Entry, ...]] = {}          # node id -> what it gave out, oldest first


def remember(entries: Iterable[Entry], owner: str = "") -> None:
    """Replace what the Prompt List of that node id gave out before. Of too many lists the oldest are forgotten."""
    _lists.pop(owner, None)
    _lists[owner] = tuple(entries)[:MOST_ENTRIES]
    while len(_lists) > MOST_LISTS:
        del _lists[next(iter(_lists))]


def find(seed: int | None, width: int, height: int, frames: int, steps: int | None = None, *,
         lists: Collection[str] | None = None) -> Entry | None:
    """The prompt of a sampler's run; None when no prompt, or more than one, is like it.

    width, height, frames: of the video, or a latent's times the VAE's factors: the same, as a prompt's sizes are multiples of them.
    steps: of the whole schedule, or those of one expert, who runs a part of them; None when they are not known. lists: node ids of
    the Prompt Lists that count, those of the graph that runs: another's prompts may have the same seeds; None: all.
    """
    wanted = (seed, width, height, frames)
    like = [entry for entry in _all(lists) if (entry.seed, entry.width, entry.height, entry.frames) == wanted]
    exact = [entry for entry in like if steps in (None, entry.steps)]
    found = {entry.prompt_id: entry for entry in exact or [entry for entry in like if steps < entry.steps]}
    return next(iter(found.values())) if len(found) == 1 else None


def place_of(wanted: Entry) -> tuple[int, int] | None:
    """Place of a run, from 1, among the runs of its list, and their number; None when no list holds it, or more than one."""
    found = [(place, len(each)) for each in _lists.values() for place, entry in enumerate(each, 1)
             if entry.prompt_id == wanted.prompt_id]
    return found[0] if len(found) == 1 else None


def _all(lists: Collection[str] | None) -> list[Entry]:
    return [entry for owner, entries in _lists.items() if lists is None or owner in lists for entry in entries]
