"""One run of one expert on disk, read: what was asked, and which files hold what was recorded.

    run.json               role, facts, what was calibrated, points; "finished": true at the end
    step_0003.safetensors  one for each step while it runs
    run.safetensors        all steps in one when it is finished; step files beside it are left over and do not count
"""
import os
import re
from dataclasses import asdict, dataclass, field, fields

from ..errors import HeaderError, RecipeError
from ..system import read_json
from .records import RecordFile
from .subject_record import Subject

RUNS, FACTS, WHOLE, VERSION = "runs", "run.json", "run.safetensors", 1
STEP = re.compile(r"step_(\d+)\.safetensors")
FOLDER = re.compile(r"(\d+)_(.+)")


@dataclass(frozen=True)
class RunFacts:
    """What was asked of a run. prompt_id: tells prompts apart, "" where a run is none of another's; seed, cfg: None where unknown;
    steps: expected of this expert, 0 where unknown; width, height, frames: of the video; image: name of the start image or "";
    sampler, model: names; part: of the schedule that this run did, as its first and last sigma: another run of the same prompt and
    expert that does another part counts beside it."""

    prompt_id: str = ""
    prompt: str = ""
    negative: str = ""
    seed: int | None = None
    steps: int = 0
    cfg: float | None = None
    width: int = 0
    height: int = 0
    frames: int = 0
    image: str = ""
    sampler: str = ""
    model: str = ""
    part: str = ""

    @classmethod
    def from_json(cls, told: dict) -> "RunFacts":
        """Of a run.json; what a later version added is left out."""
        names = {each.name for each in fields(cls)}
        return cls(**{name: value for name, value in told.items() if name in names})

    def to_json(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class Run:
    """number: in order of beginning; finished: all steps came; steps: numbers of the steps that are on disk, in order; files: that
    hold them; half_written: files that are damaged and left out; reason: why the whole run is left out, or ""."""

    number: int
    role: str
    folder: str
    facts: RunFacts = RunFacts()
    subject: Subject | None = None
    finished: bool = False
    points: dict[str, tuple[str, ...]] = field(default_factory=dict)
    files: tuple[RecordFile, ...] = ()
    half_written: int = 0
    reason: str = ""

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(sorted({step for file in self.files for step, _ in file.calls}))

    @property
    def rank(self) -> tuple[bool, int, int]:
        """Which of the runs of one prompt counts: a finished one, the later of these; else the longest."""
        return self.finished, 0 if self.finished else len(self.steps), self.number


def runs_in(folder: str) -> list[Run]:
    """Every run of a session's folder, in order of beginning."""
    root = os.path.join(folder, RUNS)
    names = sorted(os.listdir(root)) if os.path.isdir(root) else []
    found = [(int(match[1]), match[2], os.path.join(root, name)) for name in names if (match := FOLDER.fullmatch(name))]
    return [read_run(*each) for each in sorted(found)]


def read_run(number: int, role: str, folder: str) -> Run:
    """One run by its headers; a run that cannot be read says why in `reason`."""
    told = read_json(os.path.join(folder, FACTS))
    try:
        if told["version"] != VERSION:
            raise RecipeError(f"run.json is of version {told['version']}")
        facts, subject = RunFacts.from_json(told["facts"]), Subject.from_json(told["subject"])
        points = {str(point): tuple(map(str, layers)) for point, layers in told["points"].items()}
        finished = told["finished"] is True
    except (KeyError, TypeError, AttributeError, RecipeError) as cause:
        said = str(cause) if isinstance(cause, RecipeError) else "run.json is missing or damaged"
        return Run(number, role, folder, reason=said)
    files, damaged = _files(folder)
    return Run(number, role, folder, facts, subject, finished and bool(files), points, files, damaged)


def _files(folder: str) -> tuple[tuple[RecordFile, ...], int]:
    """The files that count, and how many are damaged or were not finished."""
    names = sorted(os.listdir(folder))
    if WHOLE in names:
        try:
            return (RecordFile(os.path.join(folder, WHOLE)),), 0
        except HeaderError:
            damaged = 1
    else:
        damaged = 0
    found, half = [], sum(name.endswith(".safetensors.new") for name in names)
    for name in sorted(filter(STEP.fullmatch, names), key=lambda name: int(STEP.fullmatch(name)[1])):
        try:
            found.append(RecordFile(os.path.join(folder, name)))
        except HeaderError:
            half += 1
    return tuple(found), half + damaged
