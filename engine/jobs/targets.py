"""Where the files go: names that are free, finished, or ours to resume; and whether the disk holds them."""
import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import PlanError
from ..system import read_json
from . import job as jobs

MOST = 999                                         # numbered names tried before giving up
RECORD = 1                                         # version of the records in the reports folder


@dataclass(frozen=True)
class Target:
    """The final path of one output and what lies there already."""

    path: str
    state: str                                     # "new", "resume", "changed" (ours, of other sources), "renamed", "done"
    notice: str | None = None


def done_record(reports: Path, job_id: str) -> Path:
    """Where a finished output is remembered."""
    return Path(reports) / f"{job_id}.json"


def is_done(reports: Path, job_id: str, path: str) -> bool:
    """True when `path` is the file that this very job wrote, and nobody changed it since."""
    said = recall(done_record(reports, job_id))
    if said is None or not os.path.exists(path):
        return False
    stat = os.stat(path)
    return [said.get(name) for name in ("target", "size", "mtime_ns")] == [os.path.realpath(path), stat.st_size, stat.st_mtime_ns]


def recall(path: Path) -> dict | None:
    """JSON object that this pack wrote; None when it is absent, damaged or of another kind: what it told is then found out
    again."""
    said = read_json(path)
    return said if isinstance(said, dict) and said.get("version") == RECORD else None


def choose(folder: str, names: dict[str, str], ids: dict[str, tuple[str, str, list]], on_exists: str,
           reports: Path) -> dict[str, Target]:
    """Targets of one output's experts; a pair gets one number, so that its halves still find each other.

    names: role -> file name; ids: role -> (job_id, wish, sources now). on_exists: number, overwrite or error.
    A number under which this job began or ended comes before a lower one that got free since.
    Raises PlanError when nothing is free, or on `error` when a name is taken.
    """
    def look(number: int) -> dict[str, Target | None]:
        paths = {role: os.path.join(folder, _numbered(name, number)) for role, name in names.items()}
        return {role: _look(path, *ids[role], on_exists, reports) for role, path in paths.items()}

    for number in _numbers_in_use(folder, names):
        found = look(number)
        if all(found.values()) and any(target.state != "new" for target in found.values()):
            return found
    for number in range(1, MOST):
        found = look(number)
        if all(found.values()):
            return found
        if on_exists == "error":
            taken = os.path.join(folder, next(_numbered(names[role], number) for role, target in found.items() if target is None))
            if os.path.exists(taken):
                raise PlanError(f"{taken}: exists already; choose another name, or set on_exists to number or overwrite")
            raise PlanError(f"{taken}: an unfinished file holds this name; resume or delete it, or choose another name")
    raise PlanError(f"{folder}: {MOST} files of that name exist already; choose another name")


def _numbers_in_use(folder: str, names: dict[str, str]) -> list[int]:
    """Numbers under which a file of one of these names, or the record of one, lies in the folder; ascending."""
    there, numbers = os.listdir(folder) if os.path.isdir(folder) else [], set()
    for name in names.values():
        stem, _, extension = name.rpartition(".")
        shape = re.compile(rf"{re.escape(stem)}(?:-(\d{{1,3}}))?\.{re.escape(extension)}(?:{re.escape(jobs.JOB)})?")
        numbers |= {int(found[1] or 1) for found in map(shape.fullmatch, there) if found}
    return sorted(numbers)


def _numbered(name: str, number: int) -> str:
    stem, dot, extension = name.rpartition(".")
    return name if number == 1 else f"{stem}-{number}{dot}{extension}"


def _look(path: str, job_id: str, wish: str, sources: list, on_exists: str, reports: Path) -> Target | None:
    """What `path` means for this job; None when it belongs to something else."""
    if is_done(reports, job_id, path):
        return Target(path, "done")
    job, is_taken = jobs.load(path), os.path.exists(path) and on_exists != "overwrite"
    if job is not None and job.job_id == job_id and job.is_renamed:
        return Target(path, "renamed")
    if is_taken or (job is None and os.path.exists(path + jobs.PART)):
        return None                                # a `.part` without our record may be a browser's download
    if job is not None and job.job_id == job_id:
        return Target(path, "resume")
    if job is not None and job.wish == wish:
        changed = ", ".join(job.changed_sources(sources)) or "this pack or torch"
        return Target(path, "changed", f"{os.path.basename(path)}: changed since it was begun: {changed}; it starts over")
    return Target(path, "new") if job is None else None


def check_folder(folder: str) -> None:
    """Raise PlanError when nothing can be written into `folder`."""
    existing = Path(folder).absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise PlanError(f"{folder}: cannot be written to; check the rights of the folder, or choose another")


def reserved_bytes(part: str) -> int:
    """Bytes of a part that the disk has given already; a file with holes holds less than its size."""
    if not os.path.exists(part):
        return 0
    stat = os.stat(part)
    return min(stat.st_size, stat.st_blocks * 512) if hasattr(stat, "st_blocks") else stat.st_size
