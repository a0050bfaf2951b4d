"""One output file while it is written: planned offsets, `.part`, and its final name.

Bands are written by the threads that made them; hash and record follow behind (record.py).
"""
import os
import zlib
from collections.abc import Callable

import torch

from ..system import next_free, open_write, replace, sync_folder
from .job import Job
from .layout import Layout
from .prefix import PIECE, whole_prefix
from .record import Record

STRETCH = 256 * 1024 * 1024                        # bytes between two syncs


def raw(tensor: torch.Tensor) -> memoryview:
    """The tensor's own bytes, never its storage's."""
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy())


class PartWriter:
    """Writes `job.part` by `layout`, or goes on with it. `place` ends it; `close` without it keeps the part for resuming."""

    def __init__(self, layout: Layout, job: Job, tick: Callable[[], object] = bool):
        """tick is called for every piece that resuming reads back, and may raise to stop."""
        self.layout, self.job, self.tick = layout, job, tick
        self.closed = False
        if not os.path.exists(job.path):
            job.save()                             # before the part: a part without a record is taken for somebody else's
        self.file = open_write(job.part, resume=os.path.exists(job.part))
        try:
            self.file.claim()
        except BaseException:
            self.file.close()                      # it is somebody else's now: it stays as it is
            raise
        self.record = Record(self.file, job, STRETCH)
        try:
            self._begin()
        except BaseException:
            self.abandon()
            raise
        self.done = {row["key"]: row["report"] for row in job.finished}
        self.resumed = len(self.done)

    def _begin(self) -> None:
        if self.job.finished:
            self.job.finished, self.record.body = whole_prefix(self.file, self.layout, self.job.finished, self.tick)
        if not self.job.finished:
            self.file.clear()
        self.file.preallocate(self.layout.size)    # on a resume too: a system that reserves nothing left the part short
        self.file.write_at(0, self.layout.header)
        self.job.sealed = None
        self.job.save()

    def write(self, name: str, first_row: int, tensor: torch.Tensor) -> memoryview:
        """Put rows of `name`, from `first_row` on, at their place; returns the bytes, to be given to `hash` in file order. Any
        thread.

        Raises ValueError when dtype or row shape are not what the plan promised.
        """
        spec, start = self.layout.tensors[name]
        if tensor.dtype != spec.dtype or tuple(tensor.shape[1:]) != spec.shape[1:] or (tensor.dim() == 0) != (not spec.shape):
            raise ValueError(f"planned {spec.shape} {spec.dtype}, got rows of {tuple(tensor.shape)} {tensor.dtype}")
        content = raw(tensor)
        row_bytes = spec.nbytes // spec.shape[0] if spec.shape else 0
        if first_row * row_bytes + len(content) > spec.nbytes:
            raise ValueError(f"planned {spec.shape}, got {tuple(tensor.shape)} at row {first_row}")
        self.file.write_at(start + first_row * row_bytes, content)
        return content

    def hash(self, content: memoryview) -> None:
        """Take the next bytes of the body into the hash; main thread, in file order. Raises what went wrong with those before."""
        self.record.take(content)

    def finish_key(self, key: str, last: str, sides: dict[str, torch.Tensor], report: dict) -> None:
        """All bands of `key` are written and hashed. last: the body's last tensor of it; sides: its tensors without rows."""
        checksum = 0
        for name, tensor in sides.items():
            checksum = zlib.crc32(self.write(name, 0, tensor), checksum)
        gap = bytes(self.layout.gap(last))
        self.file.write_at(self.layout.end(last) - len(gap), gap)
        row = {"key": key, "end": self.layout.end(last), "sides": list(sides), "crc": checksum, "report": report}
        self.record.finish(row, gap)
        self.done[key] = report

    def enter(self) -> None:
        """Have the finished keys synced and recorded; does not wait for it."""
        self.record.enter()

    def close(self) -> None:
        """Let go of the file. Unless it was placed, what is finished is synced and recorded first, for resuming."""
        if self.closed:
            return
        self.closed = True
        try:
            self.record.catch_up()
        finally:
            self._end()

    def abandon(self) -> None:
        """Let go of a part into which nothing was written yet, and remove it; one that holds finished keys stays."""
        self.closed = True
        self._end()
        if not self.job.finished:
            self.job.discard()

    def _end(self) -> None:
        self.record.close()
        self.file.close()

    def complete(self) -> str:
        """Write and hash the tail, put the hash into the header, sync. Returns the SHA-256 of all data after the header."""
        for name, content in self.layout.constants.items():
            self.file.write_at(self.layout.tensors[name][1], content)
        self.record.catch_up()
        running, at = self.record.body.copy(), self.layout.tail
        while at < self.layout.size:
            piece = self.file.read_at(at, min(PIECE, self.layout.size - at))
            running.update(piece)
            at += len(piece)
        self.file.write_at(0, self.layout.sealed_header(running.hexdigest()))
        self.file.sync()
        return running.hexdigest()

    def place(self, told: dict, *, overwrite: bool) -> tuple[str, str | None]:
        """Give the complete, verified part its final name. told: its section of the report, kept for a crash right after.

        Returns the name used, and why another was taken: a file that came meanwhile is replaced only with `overwrite`.
        """
        self.close()
        stat = os.stat(self.job.part)
        self.job.sealed = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "told": told}
        self.job.save()
        target, why = self.job.target, None
        if os.path.exists(target) and not overwrite:
            target = next_free(target)
            why = f"{os.path.basename(self.job.target)} was made by somebody else meanwhile, saved as {os.path.basename(target)}"
        used, held = replace(self.job.part, target)
        sync_folder(os.path.dirname(used))
        return used, held or why
