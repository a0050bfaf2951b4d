"""Carry a plan out: expert after expert, into parts that become models when all of them is checked."""
import os
import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from . import job as jobs
from . import report, verify
from .bands import Workers
from .carry import Ride, carry_all, stored_bytes
from .device import choose, full_float32
from .errors import PlanError
from .experts import ExpertPlan
from .file_plan import OutputPlan
from .line import Line
from .memory import Peak
from .output import Output
from .plan import Plan, plan_recipe
from .progress import Clock, Progress, silent
from .recipe import parse
from .system import naming
from .writer import PartWriter

ShouldStop = Callable[[], bool]
OnProgress = Callable[[Progress], None]


def never() -> bool:
    """Nobody wants to stop."""
    return False


def run(plan: Plan, *, reports: Path, should_stop: ShouldStop = never, on_progress: OnProgress = silent) -> dict:
    """Write every output of `plan` that is not finished yet, and return the report.

    reports: folder for the report and the record of finished files. should_stop is asked before every tensor; when it says yes,
    Stopped is raised after at most one stretch is synced, and the same plan goes on from there. On any error the parts stay too.
    """
    ride = _ride(plan, {expert.role: expert.order for expert in plan.experts}, reports, should_stop, on_progress)
    told = []
    for expert in plan.experts:
        outputs = [out for out in expert.outputs if out.target.state != "done"]
        _forget_finished(expert)
        if outputs:
            told.append(_write_expert(plan, expert, outputs, ride))
        else:
            ride.clock.skip(stored_bytes(expert, expert.order))
            told.append({"role": expert.role, "name": expert.source.name, "outputs": []})
        told[-1] = report.with_finished(reports, expert, told[-1])
    whole = report.assemble(plan, told, ride.device.note)
    report.save(reports, whole)
    return whole


def measure(plan: Plan, *, reports: Path, should_stop: ShouldStop = never, on_progress: OnProgress = silent) -> dict:
    """The stability meter's reading of every expert: the line without outputs, kept by content so that a base is read once."""
    wanted = {expert.role: [key for key in expert.order if key in expert.block_linears or key in expert.contributions]
              for expert in plan.experts}
    ride, told = _ride(plan, wanted, reports, should_stop, on_progress), []
    for expert in plan.experts:
        reading = report.recall_meter(reports, expert)
        if reading is None:
            peak, start = Peak(), time.monotonic()
            with Workers() as workers, full_float32():
                line = Line(expert.source, workers, ride.device.torch_device, means=True)
                rows = carry_all(line, expert, wanted[expert.role], [], ride, peak)
            reading = report.tell_expert(expert, rows, [], {"seconds": time.monotonic() - start, "peak_bytes": peak.nbytes})
            report.keep_meter(reports, expert, reading)
        else:
            ride.clock.skip(stored_bytes(expert, wanted[expert.role]))
        told.append(reading)
    return report.assemble(plan, told, ride.device.note)


def resume(path: str, *, reports: Path, should_stop: ShouldStop = never, on_progress: OnProgress = silent) -> dict:
    """Go on with one unfinished file, from its `.part` or `.job.json` alone. Returns the report.

    Raises PlanError when there is no such job.
    """
    job = jobs.load(path.removesuffix(jobs.PART).removesuffix(jobs.JOB))
    if job is None:
        raise PlanError(f"{path}: no unfinished job of this pack there; name a {jobs.PART} or {jobs.JOB} file")
    recipe, role = parse(job.recipe), job.output["role"]
    asked = next(each for each in recipe.outputs if each.format == job.output["format"] and role in each.experts)
    with plan_recipe(replace(recipe, outputs=(replace(asked, experts=(role,)),)), reports) as plan:
        return run(plan, reports=reports, should_stop=should_stop, on_progress=on_progress)


def _ride(plan: Plan, keys: dict[str, list[str]], reports: Path, should_stop: ShouldStop, on_progress: OnProgress) -> Ride:
    Path(reports).mkdir(parents=True, exist_ok=True)
    total = sum(stored_bytes(expert, keys[expert.role]) for expert in plan.experts)
    return Ride(choose(plan.recipe.device), Clock(total, on_progress), should_stop, reports)


def _write_expert(plan: Plan, expert: ExpertPlan, outputs: list[OutputPlan], ride: Ride) -> dict:
    peak, start, before, writers = Peak(), time.monotonic(), ride.clock.done, []
    try:
        for out in outputs:
            writers.append(_open(plan, out))
        sinks = [Output(out.format, expert.specs, writer) for out, writer in zip(outputs, writers, strict=True)]
        with Workers() as workers, full_float32():
            rows = carry_all(Line(expert.source, workers, ride.device.torch_device), expert, expert.order, sinks, ride, peak)
        ride.clock.advance(0, expert.role, "", "check")
        checked = [_check(expert, out, sink) for out, sink in zip(outputs, sinks, strict=True)]
        files = [{**told, **_place(out, writer)} for told, out, writer in zip(checked, outputs, writers, strict=True)]
    finally:
        for writer in writers:
            writer.close()
    seconds = time.monotonic() - start
    cost = {"seconds": seconds, "bytes_per_s": (ride.clock.done - before) / seconds, "peak_bytes": peak.nbytes}
    told = report.tell_expert(expert, rows, files, cost)
    report.keep(ride.reports, told)
    for writer in writers:
        writer.job.discard()                       # only now: a crash before would have made a second copy under the next number
    return told


def _open(plan: Plan, out: OutputPlan) -> PartWriter:
    folder = os.path.dirname(out.target.path)
    with naming(folder, "made", "check the rights of the folder, or choose another"):
        os.makedirs(folder, exist_ok=True)
    job = jobs.load(out.target.path) if out.target.state == "resume" else None
    if job is None:
        made = {"role": out.role, "format": out.format, "bytes": out.layout.size, "tensors": len(out.layout.tensors),
                "header_sha256": sha256(out.layout.header).hexdigest()}
        job = jobs.Job(out.target.path, out.job_id, out.wish, plan.recipe.to_json(), out.sources, made)
    return PartWriter(out.layout, job)


def _forget_finished(expert: ExpertPlan) -> None:
    """Remove the record of a job that a crash left after its file was recorded as finished."""
    for out in expert.outputs:
        job = jobs.load(out.target.path) if out.target.state == "done" else None
        if job is not None and job.job_id == out.job_id:
            job.discard()


def _check(expert: ExpertPlan, out: OutputPlan, sink: Output) -> dict:
    """Complete one part and hold it against the plan."""
    digest = sink.writer.complete()
    samples = {key: row["sample"] for key, row in sink.writer.done.items()}
    error = verify.check(sink.writer.job.part, out, expert, samples)
    return {"format": out.format, "bytes": out.layout.size, "error": error, "data_sha256": digest, "resumed": sink.writer.resumed,
            "job_id": out.job_id}


def _place(out: OutputPlan, writer: PartWriter) -> dict:
    """Give one checked part its final name, when those of all its outputs are checked."""
    path, why = writer.seal(out.target.path)
    return {"file": os.path.basename(path), "path": path, **({"notice": why} if why else {})}
