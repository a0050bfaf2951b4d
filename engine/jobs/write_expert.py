"""All files of one expert, from one reading of its base: parts, checked, then renamed, then recorded, in this order."""
import json
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from hashlib import sha256

from ..bands import Workers
from ..device import full_float32
from ..errors import Stopped
from ..memory import Peak
from ..system import naming
from . import job as jobs
from . import quality, report, verify
from .carry import Ride, carry_all
from .experts import ExpertPlan
from .file_plan import OutputPlan
from .line import Line
from .output import FAILURES, NoneLeftError, Output
from .plan import Plan
from .writer import PartWriter

Failures = dict[str, BaseException]                # path -> what went wrong with that output


def write_expert(plan: Plan, expert: ExpertPlan, outputs: list[OutputPlan], ride: Ride) -> tuple[dict, Failures]:
    """Write `outputs`. Returns the expert's section of the report, and what went wrong with outputs while others went on; what is
    wrong with the base or a LoRA is raised. Parts are kept with what is finished of them."""
    peak, start, placed, sinks = Peak(), time.monotonic(), {}, []
    told = {"role": expert.role, "name": expert.source.name, "outputs": []}
    try:
        with ExitStack() as stack:
            sinks += _open_all(plan, expert, outputs, ride, stack)
            if all(sink.failure is not None for sink in sinks):
                raise NoneLeftError                # before the base is read for nothing; other readings may still succeed
            with Workers(should_stop=ride.should_stop) as workers, full_float32():
                line = Line(expert.source, workers, ride.device.torch_device)
                rows = carry_all(line, expert, expert.order, [sink for sink in sinks if sink.failure is None], ride, peak)
            ride.clock.advance(0, expert.role, "", "check")
            files = _each(sinks, lambda sink: _check(expert, sink))
            seconds = time.monotonic() - start
            carried = sum(expert.source.nbytes(key) for key in expert.order if any(key in sink.carried for sink in sinks))
            cost = {"seconds": seconds, "bytes_per_s": carried / seconds, "peak_bytes": peak.nbytes}
            section = report.tell_expert(expert, rows, list(files.values()), cost)
            json.dumps(section, allow_nan=False)   # whatever a report cannot say is found out before a file gets its name
            overwrite = plan.recipe.save.on_exists == "overwrite"
            placed = _each([sink for sink in sinks if sink.path in files],
                           lambda sink: _place(sink.writer, files[sink.path], overwrite=overwrite))
            told = {**section, "outputs": list(placed.values())}
    except NoneLeftError:
        pass                                       # the caller raises what the outputs say
    report.keep(ride.reports, told)
    for sink in sinks:
        if sink.path in placed:
            sink.writer.job.discard()              # only now: a crash before would have made a second copy under the next number
    return told, {sink.path: sink.failure for sink in sinks if sink.failure is not None}


def _each(sinks: list[Output], do: Callable[[Output], dict]) -> dict[str, dict]:
    """Path -> what `do` returns, of every sink that has not failed and does not now. Raises NoneLeftError when none is left."""
    done = {}
    for sink in (sink for sink in sinks if sink.failure is None):
        try:
            done[sink.path] = do(sink)
        except FAILURES as cause:
            sink.failure = cause
    if not done:
        raise NoneLeftError
    return done


def _open_all(plan: Plan, expert: ExpertPlan, outputs: list[OutputPlan], ride: Ride, stack: ExitStack) -> list[Output]:
    """A sink per output. One that cannot be opened has failed, and leaves nothing behind that was not there."""
    def tick() -> None:
        if ride.should_stop():
            raise Stopped("stopped while the unfinished file was checked; it is kept")
        ride.clock.advance(0, outputs[0].role, "", "check")

    sinks: list[Output] = []
    try:
        for out in outputs:
            try:
                sinks.append(Output(out, expert, PartWriter(out.layout, _job_of(plan, out, ride), tick)))
            except FAILURES as cause:
                sinks.append(Output(out, expert, None))
                sinks[-1].failure = cause
    except BaseException:
        for sink in sinks:
            if sink.writer is not None:
                sink.writer.abandon()
        raise
    opened = [sink for sink in sinks if sink.writer is not None]
    for sink in opened:
        stack.callback(_let_go, sink, PartWriter.close)   # each is closed, whatever happens to another
    stack.callback(lambda: [_let_go(sink, PartWriter.enter) for sink in opened if not sink.writer.closed])
    return sinks                                   # entered first, so that they sync side by side


def _let_go(sink: Output, how: Callable[[PartWriter], None]) -> None:
    """Enter or close its part. What goes wrong then is this output's failure; one that failed before says why already."""
    try:
        how(sink.writer)
    except FAILURES as cause:
        if sink.failure is None:
            sink.failure = cause
            raise


def _job_of(plan: Plan, out: OutputPlan, ride: Ride) -> jobs.Job:
    folder = os.path.dirname(out.target.path)
    with naming(folder, "made", "check the rights of the folder, or choose another"):
        os.makedirs(folder, exist_ok=True)
    job = jobs.load(out.target.path) if out.target.state == "resume" else None
    if job is not None:
        return job
    made = {"role": out.role, "label": out.label, "bytes": out.layout.size, "tensors": len(out.layout.tensors),
            "header_sha256": sha256(out.layout.header).hexdigest(), "encoder": out.forms.options.backend}
    return jobs.Job(out.target.path, out.job_id, out.wish, plan.recipe.to_json(), out.sources, made, os.path.abspath(ride.reports))


def _check(expert: ExpertPlan, sink: Output) -> dict:
    """Complete one part and hold it against the plan."""
    digest, out = sink.writer.complete(), sink.plan
    rows = sink.writer.done
    error = verify.check(sink.writer.job.part, out, expert, {key: row["sample"] for key, row in rows.items()})
    return {"file": os.path.basename(out.target.path), "format": out.format, "label": out.label, "bytes": out.layout.size,
            "error": error, "data_sha256": digest, "resumed": sink.writer.resumed, "job_id": out.job_id,
            **quality.tell(out, expert, rows)}


def _place(writer: PartWriter, file: dict, *, overwrite: bool) -> dict:
    """Give one checked part its name."""
    path, why = writer.place(file, overwrite=overwrite)
    return {**file, "file": os.path.basename(path), "path": path, **({"notice": why} if why else {})}
