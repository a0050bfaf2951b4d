"""What a person at a terminal sees and says: plan, progress and results as text, and Ctrl-C."""
import os
import shutil
import signal
from collections.abc import Iterable
from typing import TextIO

from .jobs.job import Leftover
from .progress import Progress

BAR = 24
PLANNED = ("expert", "format", "file", "bytes", "state", "seconds", "memory_bytes", "needed_bytes", "free_bytes")
FINISHED = ("expert", "format", "MB", "error", "shift", "status", "MB/s", "peak MB", "file")
UNFINISHED = ("file", "title", "MB", "done", "problem")


class StopWish:
    """Ctrl-C once: finish the band, keep the job, stop. Twice: stop at once."""

    def __init__(self):
        self.wished = False
        signal.signal(signal.SIGINT, self._wish)

    def _wish(self, *_) -> None:
        if self.wished:
            raise KeyboardInterrupt
        self.wished = True

    def __call__(self) -> bool:
        return self.wished


def table(rows: list[dict], columns: Iterable[str]) -> list[str]:
    """Rows as aligned lines with a head: numbers to the right, text to the left, None as a dash."""
    shown = [list(columns)] + [[_text(row.get(name)) for name in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    is_number = [all(isinstance(row.get(name), int | float | None) for row in rows) for name in columns]
    pads = [str.rjust if right else str.ljust for right in is_number]
    return ["  ".join(pad(cell, width) for pad, cell, width in zip(pads, line, widths, strict=True)).rstrip() for line in shown]


def _text(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)


def bar(progress: Progress, width: int) -> str:
    """One line: bar, share, rate, time left, expert and key; at most `width` characters."""
    share = progress.done_bytes / progress.total_bytes if progress.total_bytes else 1.0
    left = "" if progress.eta_s is None else f" {int(progress.eta_s // 60)}:{int(progress.eta_s % 60):02d} left"
    filled = round(share * BAR)
    return (f"[{'#' * filled}{'.' * (BAR - filled)}] {share:4.0%} {progress.bytes_per_s / 1e6:.0f} MB/s{left} "
            f"{progress.phase} {progress.expert} {progress.key}")[:width]


class ProgressBar:
    """Draws one line again and again on a terminal; on anything else a line per tenth of the way."""

    def __init__(self, stream: TextIO):
        self.stream, self.is_terminal, self.tenth = stream, stream.isatty(), -1

    def __call__(self, progress: Progress) -> None:
        if self.is_terminal:
            self.stream.write("\r\x1b[2K" + bar(progress, shutil.get_terminal_size().columns - 1))
        elif (tenth := progress.done_bytes * 10 // max(1, progress.total_bytes)) > self.tenth:
            self.tenth = tenth
            self.stream.write(bar(progress, 200) + "\n")
        self.stream.flush()

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *error) -> None:
        """Take the line away, so that what follows starts at the left."""
        if self.is_terminal:
            self.stream.write("\r\x1b[2K")
            self.stream.flush()


def plan_lines(experts: list, notices: list[str]) -> list[str]:
    """What a plan will do, and every LoRA key that will not be used with its reason."""
    told = []
    for expert in experts:
        told.append(f"{expert.role}: {expert.source.name}: {expert.variant.title}")
        for entry in expert.ledgers:
            told.append(f"  {entry['pass']}: {entry['lora']}: {entry['applied']} of {entry['keys']} keys "
                        f"by {entry['method']} at {entry['strength']:g}" + (f", {entry['note']}" if "note" in entry else ""))
            told += [f"    refused {each['key']}: {each['reason']}" for each in entry["refused"]]
    return told + [f"note: {notice}" for notice in notices]


def plan_table(rows: list[dict], volumes: list[dict], order: str) -> list[str]:
    """Rows of a plan as a table, and what they take of each volume."""
    return [*table(rows, PLANNED), *volume_lines(volumes, order)]


def volume_lines(volumes: list[dict], order: str) -> list[str]:
    """A line for each volume of a plan: needed, at the worst moment, free; and first of all whether it does not fit."""
    lines = [f"{each['volume']}: {each['needed_bytes'] / 1e9:.2f} GB more in the end, {each['peak_bytes'] / 1e9:.2f} GB at the "
             f"peak, {each['free_bytes'] / 1e9:.2f} GB free; order: {order}" for each in volumes]
    short = [f"does not fit: {each['peak_bytes'] / 1e9:.2f} GB are needed, {each['free_bytes'] / 1e9:.2f} GB are free; free some "
             "space, or choose a folder on another disk" for each in volumes if each["peak_bytes"] > each["free_bytes"]]
    return short + lines


def leftover_lines(leftovers: list[Leftover]) -> list[str]:
    """Unfinished jobs as a table, with why one cannot be resumed."""
    rows = [{"file": os.path.basename(each.target), "title": each.title, "MB": each.nbytes // 10**6, "done": f"{each.done:.0%}",
             "problem": each.problem} for each in leftovers]
    return table(rows, UNFINISHED) if rows else ["no unfinished job"]


def report_lines(report: dict, told: Iterable[str] = ()) -> list[str]:
    """The table of finished files, what it was computed on, and every notice that was not `told` before."""
    rows = [_row(expert, out) for expert in report["experts"] for out in expert["outputs"]]
    outputs = [out for expert in report["experts"] for out in expert["outputs"]]
    of_files = [out["notice"] for out in outputs if out.get("notice")]
    notices = [notice for notice in dict.fromkeys([*report["notices"], *of_files]) if notice not in told]
    quality = [f"{out['file']}: {line}" for out in outputs for line in quality_lines(out)]
    return [*table(rows, FINISHED), *quality, f"computed on {report['device']}", *(f"note: {notice}" for notice in notices)]


def quality_lines(out: dict) -> list[str]:
    """What a finished output says of its formats, and of how much of the merge is left in it (jobs/quality.py)."""
    lines = []
    if len(out.get("formats") or ()) > 1:
        lines.append(", ".join(f"{each['layers']} {name} (error {each['error']:.2%})" for name, each in out["formats"].items()))
    kept = out.get("survival")
    if kept:
        said = f"keeps {kept['projection']:.1%} (± {kept['standard_error']:.1%}) of the merge, cosine {kept['cosine']:.2f}"
        if kept["unchanged"] is not None:
            said += f", {kept['unchanged']:.0%} of codes as the base's"
        if kept["effect_over_noise"] is not None:
            said += f"; effect over rounding noise {kept['effect_over_noise']:.2f}"
        if kept["drowned"]:
            layer, least = kept["least"][0]
            said += f", under 1 in {kept['drowned']} layers, least {layer} at {least:.2f}"
        lines.append(said)
    if out.get("subnormal"):
        lines.append(f"{out['subnormal']} values are below float16's normal range and kept fewer bits; none overflowed")
    if out.get("weighed"):
        lines.append(f"columns of {out['weighed']} layers weighed by the imatrix: less error of their outputs, more of their "
                     "weights, which is the error told")
    if out.get("lost"):
        lines.append(f"WARNING: {len(out['lost'])} layers lost more than half of themselves, as {out['lost'][0]}: their weights "
                     "are too small for the format; keep them in 16 bit, or take bf16")
    if out.get("stochastic"):
        lines.append(f"{out['stochastic']} layers rounded stochastically: their base was quantized already")
    return lines


def _row(expert: dict, out: dict) -> dict:
    meter, rate, peak = expert.get("meter") or {}, expert.get("bytes_per_s"), expert.get("peak_bytes")
    return {"expert": expert["role"], "format": out.get("label", out["format"]), "MB": out["bytes"] // 10**6, "error": out["error"],
            "shift": meter.get("shift"), "status": meter.get("status"), "MB/s": rate and int(rate / 1e6),
            "peak MB": peak and peak // 10**6, "file": out["file"] + (" (already there)" if out.get("up_to_date") else "")}
