"""Writing a run: a file after each step, all in one at the end, and no more tokens than were agreed.

A session aims at so many vectors of each point and role. The nth run is given an nth of them, spread evenly over the steps it
expects; the sum grows as 1 + 1/2 + 1/3 + ..., and when it passes twice the aim, every run is thinned to its share.
"""
import os
import shutil
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from ..system import write_json
from .merge_steps import merge_steps
from .records import StepRecord
from .run import FACTS, RUNS, VERSION, WHOLE, Run, read_run
from .thin import kept_rows, share, thin

if TYPE_CHECKING:
    from .session import Session

STEPS_EXPECTED = 20                                # where nobody says: Wan's usual number
PARTS_EXPECTED = 2                                 # cond and uncond; one call a step where cfg is 1, as ComfyUI leaves uncond out


@dataclass
class RunWriter:
    """number: of the run; said: what run.json holds; aim: tokens of each point that the session aims at; budget: of them, what this
    run may keep; tokens: vectors of each call to ask a Recorder for; seed: for the same Recorder."""

    session: "Session"
    folder: str
    number: int
    said: dict
    aim: int
    budget: int
    _places: dict[int, int] = field(default_factory=dict)   # step -> its place in this run

    @classmethod
    def begin(cls, session: "Session", said: dict, earlier: list[Run], aim: int) -> "RunWriter":
        """said: what run.json holds; earlier: runs of this role that count; aim: tokens of the session."""
        prompt = said["facts"]["prompt_id"]
        others = [run for run in earlier if run.files and (not prompt or run.facts.prompt_id != prompt)]
        number, folder = _folder(session.folder, said["role"])
        writer = cls(session, folder, number, said, aim, max(1, aim // (len(others) + 1)))
        writer._tell(finished=False)
        return writer

    @property
    def seed(self) -> int:
        return self.number

    @property
    def tokens(self) -> int:
        calls = self._steps * (1 if self.said["facts"]["cfg"] == 1.0 else PARTS_EXPECTED)
        return -(-self.budget // calls)

    @property
    def _steps(self) -> int:
        return self.said["facts"]["steps"] or STEPS_EXPECTED

    def write_step(self, record: StepRecord) -> None:
        """One finished step to disk, in place of what it was written as before. Raises PlanError on a full disk."""
        place = self._places.setdefault(record.step, len(self._places))
        quota = share(self.budget, self._steps, place, seed=self.number) if place < self._steps else 0
        tokens = {point: rows[kept_rows(len(rows), quota, f"{self.number} {record.step} {point}")]
                  for point, rows in record.tokens.items()}
        replace(record, tokens=tokens).save(os.path.join(self.folder, f"step_{record.step:04d}.safetensors"))

    def finish(self) -> None:
        """All steps came: they become one file, an earlier run of the same prompt goes, and tokens are thinned where needed.

        A run without a step is no run: its folder goes.
        """
        run = read_run(self.number, self.said["role"], self.folder)
        if not run.files:
            if not run.reason and not run.half_written:        # else something is there that could not be read just now
                shutil.rmtree(self.folder, ignore_errors=True)
            return
        merge_steps(run.files, os.path.join(self.folder, WHOLE))
        self._tell(finished=True)
        for file in run.files:
            if os.path.basename(file.path) != WHOLE:
                os.remove(file.path)
        for earlier in self.session.superseded():
            if earlier.role == self.said["role"] and earlier.number < self.number:
                shutil.rmtree(earlier.folder, ignore_errors=True)   # what stays does not count, and the session tells of it
        thin(self.session.runs(self.said["role"]), self.aim)

    def _tell(self, *, finished: bool) -> None:
        write_json(os.path.join(self.folder, FACTS), {"version": VERSION, **self.said, "finished": finished})


def _folder(session: str, role: str) -> tuple[int, str]:
    """(number, folder) of a new run; the folder is made, so that two programs never share one."""
    root = os.path.join(session, RUNS)
    os.makedirs(root, exist_ok=True)
    number = 1 + max((int(name.split("_")[0]) for name in os.listdir(root) if name.split("_")[0].isdigit()), default=0)
    while True:
        folder = os.path.join(root, f"{number:04d}_{role}")
        try:
            os.mkdir(folder)
        except FileExistsError:
            number += 1
        else:
            return number, folder
