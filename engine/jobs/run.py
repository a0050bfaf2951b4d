"""Carry a plan out: write its files, measure it, or go on with a file that was left unfinished."""
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..bands import Workers
from ..device import full_float32
from ..errors import PlanError
from ..memory import Peak
from ..merging.adaptive.store import ensure
from ..merging.adaptive.store import wanted as unmeasured
from ..progress import Clock, Progress, silent
from ..recipes.embedded import cut
from ..recipes.recipe import Recipe, parse
from ..system import naming
from . import base_norms, report
from . import job as jobs
from . import order as orders
from .carry import Ride, carry_all, stored_bytes
from .experts import ExpertPlan
from .file_plan import OutputPlan
from .line import Line
from .plan import Plan, plan_recipe
from .write_expert import Failures, write_expert

ShouldStop = Callable[[], bool]
OnProgress = Callable[[Progress], None]


def run(plan: Plan, *, reports: Path, should_stop: ShouldStop = bool, on_progress: OnProgress = silent) -> dict:
    """Write every output of `plan` that is not finished yet, and return the report.

    reports: folder for the report and the record of finished files. should_stop is asked before every band; when it says yes,
    Stopped is raised after at most one stretch is synced, and the same plan goes on from there. On any error the parts stay too.
    What goes wrong with one output is raised when the others are finished.
    """
    for expert in plan.experts:
        for out in expert.outputs:
            _catch_up(expert, out, reports)
    stages = orders.stages(plan.experts, plan.order)
    ride = _ride(plan, [(stage.expert, stage.expert.order) for stage in stages], reports, should_stop, on_progress)
    told = {expert.role: {"role": expert.role, "name": expert.source.name, "outputs": []} for expert in plan.experts}
    failures: Failures = {}
    for stage in stages:
        ensure(stage.expert, ride)
        section, failed = write_expert(plan, stage.expert, stage.outputs, ride)
        role, failures = stage.expert.role, failures | failed
        told[role] = {**told[role], **section, "outputs": told[role]["outputs"] + section["outputs"]}
    sections = [report.with_finished(reports, expert, told[expert.role]) for expert in plan.experts]
    whole = report.assemble(plan, sections)
    report.save(reports, whole)
    _complain(failures, whole)
    return whole


def _complain(failures: Failures, whole: dict) -> None:
    """Raise what went wrong with outputs while others went on; those are finished."""
    finished = [out["file"] for expert in whole["experts"] for out in expert["outputs"]]
    if len(failures) == 1 and not finished:
        raise next(iter(failures.values()))
    if failures:
        said = "; ".join(f"{os.path.basename(path)}: {cause}" for path, cause in failures.items())
        raise PlanError(f"{said}; finished all the same: {', '.join(finished) or 'none'}; when that is mended, run the same again: "
                        "only what is missing is written") from next(iter(failures.values()))


def _catch_up(expert: ExpertPlan, out: OutputPlan, reports: Path) -> None:
    """Do what a crash prevented after an output was renamed: record it as finished, and let go of its job."""
    job = jobs.load(out.target.path) if out.target.state in {"done", "renamed"} else None
    if job is not None and job.job_id == out.job_id:
        if out.target.state == "renamed":
            rows = {row["key"]: row["report"] for row in job.finished}
            report.keep(reports, report.tell_expert(expert, rows, [{**job.sealed["told"], "path": out.target.path}], {}))
        job.discard()


def measure(plan: Plan, *, reports: Path, should_stop: ShouldStop = bool, on_progress: OnProgress = silent) -> dict:
    """The stability meter's reading of every expert: the line without outputs, kept by content so that a base is read once."""
    wanted = {expert.role: [key for key in expert.order if key in expert.block_linears or key in expert.contributions]
              for expert in plan.experts}
    readings = [(expert, wanted[expert.role]) for expert in plan.experts]
    ride, told = _ride(plan, readings, reports, should_stop, on_progress), []
    for expert in plan.experts:
        reading = report.recall_meter(reports, expert)
        if reading is None:
            ensure(expert, ride)
            peak, start = Peak(), time.monotonic()
            with Workers(should_stop=should_stop) as workers, full_float32():
                line = Line(expert.source, workers, ride.device.torch_device, means=True)
                rows = carry_all(line, expert, wanted[expert.role], [], ride, peak)
            base_norms.keep(reports, expert.source, rows)
            reading = report.tell_expert(expert, rows, [], {"seconds": time.monotonic() - start, "peak_bytes": peak.nbytes})
            report.keep_meter(reports, expert, reading)
        else:
            ride.clock.skip(stored_bytes(expert, wanted[expert.role] + unmeasured(expert, reports)))
        told.append(reading)
    return report.assemble(plan, told)


def resume(path: str, *, reports: Path | None = None, should_stop: ShouldStop = bool, on_progress: OnProgress = silent) -> dict:
    """Go on with one unfinished file, from its `.part` or `.job.json` alone, also where both were moved to. Returns the report.

    reports: None means the folder that the job was begun with. Raises PlanError when there is no such job.
    """
    job = jobs.load(path.removesuffix(jobs.PART).removesuffix(jobs.JOB))
    if job is None:
        raise PlanError(f"{path}: no unfinished job of this pack there; name a {jobs.PART} or {jobs.JOB} file")
    reports = Path(reports or job.reports)
    with plan_recipe(_recipe_of(job), reports, should_stop=should_stop) as plan:
        [out] = [out for expert in plan.experts for out in expert.outputs]
        if os.path.realpath(out.target.path) != os.path.realpath(job.target):
            raise PlanError(f"{path}: the job would go on as {out.target.path}; give it its old name back, or start over")
        return run(plan, reports=reports, should_stop=should_stop, on_progress=on_progress)


def _recipe_of(job: jobs.Job) -> Recipe:
    """What a job was begun with, cut down to its one output and the expert of that, in the folder where it lies now."""
    recipe = cut(parse(job.recipe), job.output["role"], job.output["label"])
    return replace(recipe, save=replace(recipe.save, folder=os.path.dirname(os.path.abspath(job.target))))


def _ride(plan: Plan, readings: list[tuple[ExpertPlan, list[str]]], reports: Path, should_stop: ShouldStop,
          on_progress: OnProgress) -> Ride:
    """readings: which tensors of which expert, as often as they are read."""
    with naming(str(reports), "made", "check the rights of the folder, or choose another"):
        Path(reports).mkdir(parents=True, exist_ok=True)
    measured = {expert.role: (expert, unmeasured(expert, reports)) for expert, _ in readings}
    total = sum(stored_bytes(expert, keys) for expert, keys in [*readings, *measured.values()])
    return Ride(plan.device, Clock(total, on_progress), should_stop, reports)
