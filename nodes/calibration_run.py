"""One run of a sampler while it is recorded: passes become steps, and each step is on disk before the next one begins.

A sampler calls its model once or more in a step and reports the step after the first call (k-diffusion's callback): Heun's second
call comes after the report. Which step a call belongs to is known only when the next call begins or the next report comes. So a
step is written when it is reported, and written again, whole, when more of it turns out to have come: with one call a step, never.
"""
import dataclasses
import operator
import time

import torch

from ..engine.calibration import log
from ..engine.calibration.points import points_of
from ..engine.calibration.records import StepRecord
from ..engine.calibration.run_writer import RunWriter
from ..engine.calibration.statistics import Recorder
from .calibration_hooks import Verified, watched

PARTS = {0: "cond"}                                # comfy/samplers.py, sampling_function: conds are [positive, negative]
MAPPED = ("squares", "counts", "peaks", "tokens", "left_out")   # fields of a StepRecord by point


def parts_of(options: dict) -> tuple[str, ...]:
    """Of one pass: what each equal chunk of its batch is, by ComfyUI's transformer_options."""
    return tuple(PARTS.get(index, "uncond") for index in options.get("cond_or_uncond") or [0])


class Recording:
    """What a run records. modules: name -> linear, all that are to be seen; begin: points -> RunWriter; log: file for the
    original's lines, None for none."""

    def __init__(self, modules, begin, log: str | None = None):
        self.modules, self.log_path, self._begin = modules, log, begin
        self.writer: RunWriter = begin(points_of(modules))
        self.recorder = Recorder(modules, seed=self.writer.seed, tokens=self.writer.tokens)
        self.points: dict[str, tuple[str, ...]] = {}
        self.alone: list[str] = []
        self.steps, self.calls, self.started = 0, 0, time.monotonic()
        self._waiting = False                      # passes since the last report
        self._step: StepRecord | None = None       # the last one that was reported

    def forward(self, options: dict, call):
        """One pass of the diffusion model under hooks; returns what `call` does."""
        parts = parts_of(options)
        self.recorder.begin(options["sigmas"], parts)
        self._waiting, self.calls = True, self.calls + len(parts)
        if self.points:
            with watched({point: self.modules[point] for point in self.points}, self.recorder.see):
                return call()
        expected = points_of(self.modules)
        first = Verified(expected, self.recorder.see)
        with watched(self.modules, first.see):
            found = call()
        self.points, self.alone = first.points(), first.alone
        if self.points != expected:
            self.writer.finish()                   # without a step it leaves nothing
            self.writer = self._begin(self.points)
        return found

    def evaluate(self) -> None:
        """The sampler calls its model anew: what came since the report, if any, was of that step."""
        if self._waiting and self._step is not None:
            self._step = joined(self._step, self._take(self._step.step))
            self.writer.write_step(self._step)

    def report(self) -> None:
        """A step is done, as the sampler says it."""
        if self._waiting:
            self._step = self._take(self.steps)
            self.writer.write_step(self._step)
        self.steps += 1

    def finish(self) -> None:
        """Sampling returned. A sampler that reported no step at all did all of them as one."""
        if self._waiting and self._step is None:
            self.report()
        self.evaluate()
        self.writer.finish()

    def give_up(self) -> None:
        """Sampling did not return: what was written stays, and a run without a step leaves nothing."""
        if self._step is None:
            self.writer.finish()

    def unseen(self) -> list[str]:
        """Layers that no pass reached."""
        seen = {layer for layers in self.points.values() for layer in layers}
        return [name for name in self.modules if name not in seen]

    def _take(self, step: int) -> StepRecord:
        self._waiting = False
        record = only(self.recorder.take(step), self.points)
        if self.log_path is not None:
            with open(self.log_path, "a", encoding="utf-8", newline="\n") as file:
                file.write(log.lines(record, self.points))
        return record


def only(record: StepRecord, points) -> StepRecord:
    """The record without inputs that are none of these points: of layers that share a point's."""
    places = [place for place, point in enumerate(record.points) if point in points]
    mapped = {name: {point: value for point, value in getattr(record, name).items() if point in points} for name in MAPPED}
    return dataclasses.replace(record, points=tuple(record.points[place] for place in places), amax=record.amax[:, places],
                               rows=record.rows[:, places], histogram=record.histogram[places], **mapped)


def joined(one: StepRecord, more: StepRecord) -> StepRecord:
    """Two parts of one step, of the same points, as if they had been recorded as one."""
    ways = {"squares": torch.add, "counts": operator.add, "peaks": torch.maximum, "left_out": operator.add,
            "tokens": lambda first, second: torch.cat([first, second])}
    mapped = {name: _merged(getattr(one, name), getattr(more, name), way) for name, way in ways.items()}
    return dataclasses.replace(one, calls=one.calls + more.calls, amax=torch.cat([one.amax, more.amax]),
                               rows=torch.cat([one.rows, more.rows]), histogram=one.histogram + more.histogram, **mapped)


def _merged(one: dict, more: dict, way) -> dict:
    return {**one, **{point: way(one[point], value) if point in one else value for point, value in more.items()}}
