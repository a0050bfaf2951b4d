"""What Save Model tells: the table of the plan, the headers, the result, and what earlier runs left behind."""
import json
import os

from ..engine.jobs.job import Leftover, find_leftovers
from ..engine.terminal import quality_lines, volume_lines
from .handles import SavedFile

__all__ = ["headers", "leftover_lines", "plan_lines", "result_lines", "saved_files", "table", "volume_lines"]
COLUMNS = ("expert", "format", "size", "state", "time", "memory", "free", "file")


def table(rows: list[dict]) -> dict:
    """Plan rows in words: {"head": [...], "rows": [[...]]}; a column of experts only where there is a pair."""
    first = 0 if any(row["expert"] != "model" for row in rows) else 1
    told = [[row["expert"], row["format"], size(row["bytes"]), row["state"], duration(row["seconds"]), size(row["memory_bytes"]),
             size(row["free_bytes"]), row["file"]] for row in rows]
    return {"head": list(COLUMNS[first:]), "rows": [row[first:] for row in told]}


def plan_lines(notices: list[str]) -> list[str]:
    """What plan_only says at the end."""
    return [*(f"note: {notice}" for notice in notices), "plan only: nothing was written"]


def headers(plan) -> str:
    """Metadata of every planned file as readable JSON; a hash of data that do not exist yet is zeros."""
    shown = {os.path.basename(output.target.path): output.layout.metadata
             for expert in plan.experts for output in expert.outputs}
    return json.dumps(shown, indent=1, ensure_ascii=False)


def saved_files(report: dict) -> tuple[SavedFile, ...]:
    """The files of a report as they lie on disk now."""
    files = []
    for expert in report["experts"]:
        for output in expert["outputs"]:
            status = os.stat(output["path"])
            files.append(SavedFile(expert["role"], output["path"], output["format"], status.st_size, status.st_mtime_ns,
                                   output.get("label", output["format"])))    # reports of before have no label
    return tuple(files)


def result_lines(report: dict) -> list[str]:
    """A line per file, written or already up to date, with its error; then the notices."""
    lines = []
    for expert in report["experts"]:
        for output in expert["outputs"]:
            how = "already up to date" if output.get("up_to_date") else "resumed and written" if output["resumed"] else "written"
            lines.append(f"{output['file']}: {how}, {size(output['bytes'])}, error {output['error']:.2%}")
            lines += [f"  {line}" for line in quality_lines(output)]
    return lines + [f"note: {notice}" for notice in report["notices"]]


def leftover_lines(folder: str) -> list[str]:
    """Unfinished files of earlier runs in `folder`: they wait for their job, and take room until then."""
    return [_leftover_line(each) for each in find_leftovers(folder)] if os.path.isdir(folder) else []


def _leftover_line(leftover: Leftover) -> str:
    name = os.path.basename(leftover.target)
    if leftover.problem:
        return f"unfinished: {name}, {size(leftover.nbytes)}, cannot go on: {leftover.problem}"
    return (f"unfinished: {name}, {leftover.done:.0%}, {size(leftover.nbytes)}; queue its job again to go on, or delete its .part "
            "and .job.json files")


def size(count: int) -> str:
    """Bytes in words, decimal."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """Seconds in words."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min" if seconds >= 60 else f"{seconds:.0f} s"
