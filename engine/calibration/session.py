"""A session of calibration: a folder that runs are added to, for both experts, from any number of queues.

    <root>/<name>/session.json                     name, and role -> what was calibrated first
    <root>/<name>/runs/0007_high_noise/            one run of one expert (run.py)

Everything is written whole or not at all, and nothing is written twice while sampling, so that whatever stops a program, at most
one step is lost. A prompt that was run again counts once: its last finished run, or the longest where none is.
"""
import os
import shutil
from collections import Counter
from dataclasses import dataclass

from ..errors import RecipeError
from ..system import legal_name, naming, read_json, write_json
from .compare import compare
from .run import RUNS, Run, RunFacts, runs_in
from .run_writer import RunWriter
from .subject_record import Subject

__all__ = ["Run", "RunFacts", "RunWriter", "Session", "sessions"]

FILE, VERSION = "session.json", 1
BEFORE = "runs_before"                             # what a restart moved aside
LONE = "model"                                     # role of a model of one file; any other is an expert of a pair
ALLOW = "take a new session, or turn allow_other_base on"
TOKENS = 128  # vectors of each point and role that a session aims at; at most twice as many lie there


def sessions(root: str | os.PathLike) -> list[str]:
    """Names of the sessions in a folder, sorted; none where there is no such folder."""
    if not os.path.isdir(root):
        return []
    return sorted(name for name in os.listdir(root) if os.path.isfile(os.path.join(root, name, FILE)))


@dataclass(frozen=True)
class Session:
    """folder: of the session; nothing of it is held in memory or open."""

    folder: str
    name: str

    @classmethod
    def create(cls, root: str | os.PathLike, name: str) -> "Session":
        """The session `name` below `root`, a new one or the one that is there. Raises PlanError for a name that some system forbids
        or that leads out of `root`, RecipeError where another version wrote it."""
        folder = os.path.join(os.path.abspath(root), legal_name(name.strip()))
        if os.path.isfile(os.path.join(folder, FILE)):
            return cls.open(folder)
        os.makedirs(os.path.join(folder, RUNS), exist_ok=True)
        write_json(os.path.join(folder, FILE), {"version": VERSION, "name": name.strip(), "experts": {}})
        return cls(folder, name.strip())

    @classmethod
    def open(cls, folder: str | os.PathLike) -> "Session":
        """The session in this folder. Raises RecipeError when there is none."""
        folder = os.path.abspath(folder)
        _read(folder)
        return cls(folder, os.path.basename(folder))

    def subject(self, role: str) -> Subject | None:
        """What was calibrated first of an expert; None where nothing was."""
        told = _read(self.folder)["experts"].get(role)
        return None if told is None else Subject.from_json(told)

    def compare(self, role: str, subject: Subject) -> tuple[list[str], list[str]]:
        """(errors, warnings) of adding runs of this subject: against what was calibrated first of this expert, as `compare` has it;
        and a model of one file and a pair's experts are two models, whatever their bases are called."""
        first, held = self.subject(role), {run.role for run in self.runs() if run.steps}
        errors, warnings = ([], []) if first is None else compare(first, subject)
        pair = " and ".join(sorted(held - {LONE}))
        if role == LONE and pair:
            errors = [f"expected an expert of a pair, as the session has runs of {pair}, found a model of one file", *errors]
        elif role != LONE and LONE in held:
            errors = [f"expected a model of one file, as the session has runs of, found {role} of a pair", *errors]
        return errors, warnings

    def runs(self, role: str | None = None) -> list[Run]:
        """Those that count, in order of their beginning; of all experts where role is None."""
        return [run for run in _kept(runs_in(self.folder)) if role in (None, run.role)]

    def notices(self) -> list[str]:
        """What lies there and does not count, in words."""
        found = runs_in(self.folder)
        kept = {run.folder for run in _kept(found)}
        counted = Counter(run.reason or ("repeated" if run.folder not in kept else "") for run in found)
        said = [f"{count} runs of a prompt that was run again do not count" for count in [counted["repeated"]] if count]
        said += [f"{count} runs are left out: {reason}" for reason, count in counted.items() if reason not in ("", "repeated")]
        half = sum(run.half_written for run in found if run.folder in kept)
        unfinished = sum(not run.finished for run in found if run.folder in kept and run.steps)
        return said + [text for count, text in ((half, f"{half} files of steps are half-written or damaged, and are left out"),
                                                (unfinished, f"{unfinished} runs were not finished: their steps count")) if count]

    def begin_run(self, role: str, subject: Subject, facts: RunFacts, points: dict[str, tuple[str, ...]], *,
                  allow_other_base: bool = False) -> RunWriter:
        """A run starts. points: as `points_of` gives them. An earlier run of the same role and prompt_id goes when
        this one finishes.

        Raises RecipeError when the session holds another base of this expert, or a model of another kind, unless that is allowed.
        """
        if (errors := self.compare(role, subject)[0]) and not allow_other_base:
            raise RecipeError(f"session {self.name}: {role}: {'; '.join(errors)}; {ALLOW}")
        told = _read(self.folder)
        if role not in told["experts"]:
            write_json(os.path.join(self.folder, FILE), {**told, "experts": {**told["experts"], role: subject.to_json()}})
        said = {"role": role, "facts": facts.to_json(), "subject": subject.to_json(),
                "points": {name: list(layers) for name, layers in points.items()}}
        return RunWriter.begin(self, said, self.runs(role), TOKENS)

    def clear(self) -> None:
        """Begin anew, logs included; what was made of it stays, and the runs lie in `runs_before` until the next time."""
        runs, before = os.path.join(self.folder, RUNS), os.path.join(self.folder, BEFORE)
        with naming(runs, "moved aside", "close the program that reads it"):
            if os.path.isdir(runs) and os.listdir(runs):
                shutil.rmtree(before, ignore_errors=True)
                os.replace(runs, before)
            for log in (name for name in os.listdir(self.folder) if name.endswith(".log")):
                os.remove(os.path.join(self.folder, log))
        write_json(os.path.join(self.folder, FILE), {"version": VERSION, "name": self.name, "experts": {}})

    def superseded(self) -> list[Run]:
        """Runs that do not count because their prompt was run again."""
        found = runs_in(self.folder)
        kept = {run.folder for run in _kept(found)}
        return [run for run in found if not run.reason and run.folder not in kept]


def _read(folder: str) -> dict:
    told = read_json(os.path.join(folder, FILE))
    if not isinstance(told, dict) or told.get("version") != VERSION or not isinstance(told.get("experts"), dict):
        raise RecipeError(f"{os.path.basename(folder)}: expected a session of calibration, version {VERSION}, found none in its "
                          "folder; choose another, or calibrate anew")
    return told


def _kept(runs: list[Run]) -> list[Run]:
    """Those that count: of each prompt the last finished run, or where none is, the longest."""
    best: dict[tuple[str, str, str], Run] = {}
    for run in runs:
        key = run.role, run.facts.prompt_id or run.folder, run.facts.part
        if not run.reason and (key not in best or run.rank >= best[key].rank):
            best[key] = run
    return sorted(best.values(), key=lambda run: run.number)
