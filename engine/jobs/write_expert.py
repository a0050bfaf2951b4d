"""All files of one expert, from one reading of its base: parts, checked, then renamed, then recorded, in this order."""
import json
import os
import time
from contextlib import ExitStack
from hashlib import sha256

from ..bands import Workers
from ..device import full_float32
from ..errors import Stopped
from ..memory import Peak
from ..system import naming
from . import job as jobs
from . import report, verify
from .carry import Ride, carry_all
from .experts import ExpertPlan
from .file_plan import OutputPlan
from .line import Line
from .output import Output
from .plan import Plan
from .writer import PartWriter


def write_expert(plan: Plan, expert: ExpertPlan, outputs: list[OutputPlan], ride: Ride) -> dict:
    """Write `outputs`; returns the expert's section of the report. On any error the parts are kept with what is finished of
    them."""
    peak, start = Peak(), time.monotonic()
    with ExitStack() as stack:
        writers = _open_all(plan, outputs, ride, stack)
        sinks = [Output(out.format, expert.specs, writer) for out, writer in zip(outputs, writers, strict=True)]
        with Workers(should_stop=ride.should_stop) as workers, full_float32():
            rows = carry_all(Line(expert.source, workers, ride.device.torch_device), expert, expert.order, sinks, ride, peak)
        ride.clock.advance(0, expert.role, "", "check")
        files = [_check(expert, out, sink) for out, sink in zip(outputs, sinks, strict=True)]
        seconds = time.monotonic() - start
        carried = sum(expert.source.nbytes(key) for key in expert.order if any(key in sink.carried for sink in sinks))
        cost = {"seconds": seconds, "bytes_per_s": carried / seconds, "peak_bytes": peak.nbytes}
        told = report.tell_expert(expert, rows, files, cost)
        json.dumps(told, allow_nan=False)          # whatever a report cannot say is found out before a file gets its name
        overwrite = plan.recipe.save.on_exists == "overwrite"
        told["outputs"] = [_place(writer, file, overwrite=overwrite) for writer, file in zip(writers, files, strict=True)]
    report.keep(ride.reports, told)
    for writer in writers:
        writer.job.discard()                       # only now: a crash before would have made a second copy under the next number
    return told


def _open_all(plan: Plan, outputs: list[OutputPlan], ride: Ride, stack: ExitStack) -> list[PartWriter]:
    """A writer per output. When one cannot be opened, those before it leave nothing behind that was not there."""
    def tick() -> None:
        if ride.should_stop():
            raise Stopped("stopped while the unfinished file was checked; it is kept")
        ride.clock.advance(0, outputs[0].role, "", "check")

    writers = []
    try:
        for out in outputs:
            writers.append(PartWriter(out.layout, _job_of(plan, out, ride), tick))
    except BaseException:
        for writer in writers:
            writer.abandon()
        raise
    for writer in writers:
        stack.callback(writer.close)               # each is closed, whatever happens to another
    stack.callback(_enter_all, writers)            # runs first, so that they sync side by side
    return writers


def _enter_all(writers: list[PartWriter]) -> None:
    for writer in writers:
        if not writer.closed:
            writer.enter()


def _job_of(plan: Plan, out: OutputPlan, ride: Ride) -> jobs.Job:
    folder = os.path.dirname(out.target.path)
    with naming(folder, "made", "check the rights of the folder, or choose another"):
        os.makedirs(folder, exist_ok=True)
    job = jobs.load(out.target.path) if out.target.state == "resume" else None
    if job is not None:
        return job
    made = {"role": out.role, "format": out.format, "bytes": out.layout.size, "tensors": len(out.layout.tensors),
            "header_sha256": sha256(out.layout.header).hexdigest()}
    return jobs.Job(out.target.path, out.job_id, out.wish, plan.recipe.to_json(), out.sources, made, os.path.abspath(ride.reports))


def _check(expert: ExpertPlan, out: OutputPlan, sink: Output) -> dict:
    """Complete one part and hold it against the plan."""
    digest = sink.writer.complete()
    samples = {key: row["sample"] for key, row in sink.writer.done.items()}
    error = verify.check(sink.writer.job.part, out, expert, samples)
    return {"file": os.path.basename(out.target.path), "format": out.format, "bytes": out.layout.size, "error": error,
            "data_sha256": digest, "resumed": sink.writer.resumed, "job_id": out.job_id}


def _place(writer: PartWriter, file: dict, *, overwrite: bool) -> dict:
    """Give one checked part its name."""
    path, why = writer.place(file, overwrite=overwrite)
    return {**file, "file": os.path.basename(path), "path": path, **({"notice": why} if why else {})}
