"""What lies beside a `.part` and lets it be resumed: recipe, sources, and the keys that are safely on disk.

`name.safetensors.part` (or `.gguf.part`) holds the data at their final offsets, `name.safetensors.job.json` this record. A key is
entered only after its bytes are synced. Its checksum is the SHA-256 of all body bytes up to its end, a snapshot of the running
hash, so it costs nothing, and one reading of the part finds the last key that is whole. Neither name ends as a model's does, so no
loader lists them.
"""
import json
import os
from dataclasses import dataclass, field, fields

from ..errors import MergeError, PlanError
from ..precision import GGUF, SAFETENSORS
from ..system import naming, write_json

VERSION = 2                                        # 2: outputs by label
PART, JOB = ".part", ".job.json"


@dataclass
class Job:
    """The record of one output file."""

    target: str
    job_id: str                                    # hash of all that decides the bytes: sources, LoRAs, methods, format, versions
    wish: str                                      # the same without the files' content: tells "changed" from "another job"
    recipe: dict
    sources: list[dict]                            # name, size, mtime_ns, header or full hash
    output: dict                                   # role, label, and of the plan: bytes, tensors, hash of the header
    reports: str                                   # folder of the report and of the record of finished files
    finished: list[dict] = field(default_factory=list)   # key, end, prefix, sides, report
    sealed: dict | None = None                     # size, mtime_ns and report of the complete part, written before its rename

    @property
    def part(self) -> str:
        return self.target + PART

    @property
    def path(self) -> str:
        return self.target + JOB

    @property
    def is_renamed(self) -> bool:
        """True when the complete part got its final name, and the crash came before that was recorded elsewhere."""
        if self.sealed is None or os.path.exists(self.part) or not os.path.exists(self.target):
            return False
        stat = os.stat(self.target)
        return [stat.st_size, stat.st_mtime_ns] == [self.sealed["size"], self.sealed["mtime_ns"]]

    def save(self) -> None:
        """Write the record so that it is whole at any moment."""
        names = (each.name for each in fields(self) if each.name != "target")
        write_json(self.path, {"version": VERSION, **{name: getattr(self, name) for name in names}})

    def discard(self) -> None:
        """Remove record and part."""
        for path in (self.part, self.path):
            if os.path.exists(path):
                os.unlink(path)

    def changed_sources(self, now: list[dict]) -> list[str]:
        """Names of the files that are not what they were when the record was made."""
        return sorted({each["name"] for each in self.sources + now if not (each in self.sources and each in now)})


def load(target: str) -> Job | None:
    """The record beside `target`, or None. Raises PlanError when it is unreadable or of another version."""
    path = target + JOB
    if not os.path.exists(path):
        return None
    try:
        with naming(path, "read"), open(path, encoding="utf-8") as file:
            said = json.load(file)
        if said.pop("version") != VERSION:
            raise PlanError(f"{path}: made by another version of this pack; delete it and its {PART} file, or use that version")
        return Job(target=target, **said)
    except (ValueError, TypeError, KeyError, AttributeError) as cause:
        raise PlanError(f"{path}: not a job file of this pack ({cause}); delete it and its {PART} file") from cause


@dataclass(frozen=True)
class Leftover:
    """An unfinished file: what it would have become, and how far it came."""

    target: str
    title: str
    nbytes: int                                    # on disk now
    done: float                                    # share of the final size, 0..1
    problem: str | None = None                     # why it cannot be resumed


def find_leftovers(folder: str) -> list[Leftover]:
    """Unfinished files in `folder` (not below it). One that cannot be resumed is listed with its problem; only a missing folder
    raises."""
    with naming(folder, "listed", "choose a folder that exists and that you may read"):
        names = sorted(os.listdir(folder))
    targets = sorted({os.path.join(folder, name.removesuffix(JOB).removesuffix(PART)) for name in names
                      if name.endswith((JOB, *(f".{ending}{PART}" for ending in (SAFETENSORS, GGUF))))})
    return [_leftover(target) for target in targets]


def _leftover(target: str) -> Leftover:
    size = os.path.getsize(target + PART) if os.path.exists(target + PART) else 0
    try:
        job = load(target)
    except MergeError as cause:
        return Leftover(target, "", size, 0.0, str(cause))
    if job is None:
        return Leftover(target, "", size, 0.0, f"no {JOB} file beside it, so it cannot be resumed: it may be another program's")
    done = job.finished[-1]["end"] / job.output["bytes"] if job.finished and size else 0.0
    return Leftover(target, job.recipe.get("title", ""), size, done)


def delete_leftover(leftover: Leftover) -> None:
    """Remove an unfinished job's part and record; a finished model under the final name is not touched."""
    job = load(leftover.target)
    if job is None:
        raise PlanError(f"{leftover.target}: no unfinished job of this pack there")
    job.discard()
