"""One output file while it is written: planned offsets, `.part`, a running hash, and a record of what is safely on disk.

Bands are written by the threads that made them, the hash follows in file order on the main thread. Every 256 MB one background
thread
syncs the data and only then enters the finished keys into the job file: no wait, and no STOP, is longer than one such stretch.
"""
import hashlib
import os
import zlib
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from .errors import PlanError
from .job import Job
from .layout import Layout
from .system import open_write, replace, sync_folder

STRETCH = 256 * 1024 * 1024                        # bytes between two syncs
PIECE = 4 * 1024 * 1024                            # read-back unit


def raw(tensor: torch.Tensor) -> memoryview:
    """The tensor's own bytes, never its storage's."""
    return memoryview(tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy())


class PartWriter:
    """Writes `job.part` by `layout`, or goes on with it. `seal` ends it; `close` without it keeps the part for resuming."""

    def __init__(self, layout: Layout, job: Job):
        self.layout, self.job = layout, job
        self.background = ThreadPoolExecutor(1, "wan22-sync")
        self.syncing: Future | None = None
        self.waiting, self.unsynced, self.sealed = [], 0, False
        self.body = hashlib.sha256()
        resumes = bool(job.finished) and os.path.exists(job.part) and os.path.getsize(job.part) == layout.size
        self.file = open_write(job.part, resume=resumes)
        if resumes:
            job.finished = self._whole_prefix(job.finished)
        else:
            self._begin()
        self.done = {row["key"]: row["report"] for row in job.finished}
        self.resumed = len(self.done)

    def _begin(self) -> None:
        self.job.finished = []
        try:
            self.file.preallocate(self.layout.size)
        except (OSError, PlanError):
            self.file.close()                      # the disk is too small: nothing was written, nothing stays
            os.unlink(self.job.part)
            raise
        self.file.write_at(0, self.layout.header)
        for name, content in self.layout.constants.items():
            self.file.write_at(self.layout.tensors[name][1], content)
        self.job.save()

    def _whole_prefix(self, rows: list[dict]) -> list[dict]:
        """The rows whose bytes are on disk as they were recorded; the running hash is left at the end of the last of them."""
        at, running = len(self.layout.header), hashlib.sha256()
        for number, row in enumerate(rows):
            while at < row["end"]:
                piece = self.file.read_at(at, min(PIECE, row["end"] - at))
                running.update(piece)
                at += len(piece)
            if running.hexdigest() != row["prefix"] or self._sides_checksum(row["sides"]) != row["crc"]:
                return rows[:number]
            self.body = running.copy()
        return rows

    def _sides_checksum(self, names: list[str]) -> int:
        checksum = 0
        for name in names:
            spec, start = self.layout.tensors[name]
            checksum = zlib.crc32(self.file.read_at(start, spec.nbytes), checksum)
        return checksum

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
        """Take the next bytes of the body into the hash; main thread, in file order."""
        self.body.update(content)
        self.unsynced += len(content)

    def finish_key(self, key: str, last: str, sides: dict[str, torch.Tensor], report: dict) -> None:
        """All bands of `key` are written and hashed. last: the body's last tensor of it; sides: its tensors without rows."""
        checksum = 0
        for name, tensor in sides.items():
            checksum = zlib.crc32(self.write(name, 0, tensor), checksum)
        spec, start = self.layout.tensors[last]
        self.waiting.append({"key": key, "end": start + spec.nbytes, "prefix": self.body.copy().hexdigest(), "sides": list(sides),
                             "crc": checksum, "report": report})
        self.done[key] = report
        if self.unsynced >= STRETCH:
            self._enter()

    def _enter(self) -> None:
        """Hand the finished keys to the background: sync, then record. Waits for the stretch before, so that no more than two are
        dirty."""
        self._settle()
        rows, self.waiting, self.unsynced = self.waiting, [], 0
        self.syncing = self.background.submit(self._sync_and_record, rows)

    def _sync_and_record(self, rows: list[dict]) -> None:
        self.file.sync()
        self.job.finished = self.job.finished + rows
        self.job.save()

    def _settle(self) -> None:
        if self.syncing is not None:
            waited, self.syncing = self.syncing, None
            waited.result()

    def close(self) -> None:
        """Let go of the file. Unless it was sealed, what is finished is synced and recorded first, for resuming."""
        if self.sealed:
            return
        self.sealed = True
        try:
            self._enter()
            self._settle()
        finally:
            self.background.shutdown(wait=True)
            self.file.close()

    def complete(self) -> str:
        """Hash the tail, put the hash into the header, sync. Returns the SHA-256 of all data after the header."""
        self._enter()
        self._settle()
        running, at = self.body.copy(), self.layout.tail
        while at < self.layout.size:
            piece = self.file.read_at(at, min(PIECE, self.layout.size - at))
            running.update(piece)
            at += len(piece)
        self.file.write_at(0, self.layout.sealed_header(running.hexdigest()))
        self.file.sync()
        return running.hexdigest()

    def seal(self, target: str) -> tuple[str, str | None]:
        """Give the complete, verified part its final name. Returns the name used and why another was taken, if one was.

        The job file stays: whoever records that the file is finished removes it after that, so that no crash makes a second copy.
        """
        self.close()
        used, why = replace(self.job.part, target)
        sync_folder(os.path.dirname(used))
        return used, why
