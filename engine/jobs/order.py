"""In which order the files of a job are made: how often each base is read, and how much room that takes at its worst.

    all at once        there is room for every file before the first is begun; each base is read once
    expert by expert   one expert's files from one reading, then the other's; each base is read once
    file by file       one file after the other; each base is read once per file
A file that replaces another lies beside it until it is finished; then the old one's room is free again. So with `overwrite` the
orders differ in what they need at their peak, and so does memory: a buffer and a stretch of unsynced data for each open file.
`auto` is the first of the three whose peak every volume can hold.
"""
import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import PlanError
from ..recipes import recipe_parts
from ..system import free_bytes
from .experts import ExpertPlan
from .file_plan import OutputPlan
from .job import PART
from .targets import reserved_bytes

AUTO, *ORDERS = recipe_parts.ORDERS
FINISHED = {"done", "renamed"}


@dataclass(frozen=True)
class Stage:
    """Files of one expert from one reading of its base."""

    expert: ExpertPlan
    outputs: list[OutputPlan]


@dataclass
class Volume:
    """What a job takes of one volume, in bytes: in the end, at its worst, and what is free now."""

    folder: str
    free: int
    needed: int = 0
    peak: int = 0
    files: list[str] = field(default_factory=list)

    def row(self) -> dict:
        """As a table shows it."""
        return {"volume": self.folder, "needed_bytes": self.needed, "peak_bytes": self.peak, "free_bytes": self.free}


def needed_bytes(out: OutputPlan) -> int:
    """What the disk still has to give for one file; bytes of its `.part` are given already."""
    return 0 if out.target.state in FINISHED else out.layout.size - reserved_bytes(out.target.path + PART)


def stages(experts: list[ExpertPlan], order: str) -> list[Stage]:
    """The readings of an order (not AUTO), with what is left to do in each."""
    left = [Stage(expert, [out for out in expert.outputs if out.target.state not in FINISHED]) for expert in experts]
    if order == "file by file":
        left = [Stage(stage.expert, [out]) for stage in left for out in stage.outputs]
    return [stage for stage in left if stage.outputs]


def volumes(experts: list[ExpertPlan], order: str) -> list[Volume]:
    """What an order takes of every volume that is written to."""
    found: dict[int, Volume] = {}
    held: dict[int, int] = defaultdict(int)        # more than before the job, so far
    readings = [stage.outputs for stage in stages(experts, order)]
    if order == ORDERS[0]:
        readings = [[out for outputs in readings for out in outputs]]
    for outputs in readings:
        for out in outputs:
            device, folder = volume_of(out.target.path)
            volume = found.setdefault(device, Volume(folder, free_bytes(folder)))
            volume.files.append(os.path.basename(out.target.path))
            held[device] += needed_bytes(out)
        for device, volume in found.items():
            volume.peak = max(volume.peak, held[device])
        for out in outputs:
            if os.path.exists(out.target.path):
                held[volume_of(out.target.path)[0]] -= os.path.getsize(out.target.path)
    for device, volume in found.items():
        volume.needed = held[device]
    return list(found.values())


def volume_of(path: str) -> tuple[int, str]:
    """(number of the volume, nearest folder that exists) of a file that is to be written."""
    folder = Path(path).absolute().parent
    while not folder.exists():
        folder = folder.parent
    return os.stat(folder).st_dev, str(folder)


def choose(experts: list[ExpertPlan], order: str) -> str:
    """The order itself, or what `auto` stands for: the first that fits, or the last where none does."""
    if order != AUTO:
        return order
    fitting = [each for each in ORDERS if all(volume.peak <= volume.free for volume in volumes(experts, each))]
    return fitting[0] if fitting else ORDERS[-1]


def check(experts: list[ExpertPlan], order: str) -> None:
    """Raise PlanError when a volume cannot hold what the order takes at its peak."""
    for volume in volumes(experts, order):
        if volume.free < volume.peak:
            smaller = [each for each in ORDERS if all(other.peak <= other.free for other in volumes(experts, each))]
            way = f", or set order to {smaller[0]}" if smaller else ""
            raise PlanError(f"{volume.folder}: {volume.peak / 2**30:.1f} GiB are needed, {volume.free / 2**30:.1f} GiB are free; "
                            f"free some space, or choose a folder on another disk{way}")
