"""What is safely on disk of one output file: a running hash behind the writers, syncs, and the finished keys in the job file.

The hash follows in file order on a thread of its own. Every stretch of bytes another thread syncs the data, and only then enters
the finished keys into the job file: no wait, and no STOP, is longer than one stretch.
"""
import hashlib
from concurrent.futures import Future, ThreadPoolExecutor

from ..system import WriteFile
from .behind import Behind
from .job import Job


class Record:
    """Of `file`, in `job`; stretch: bytes between two syncs. body: running SHA-256 of the data, to be read after `catch_up`."""

    def __init__(self, file: WriteFile, job: Job, stretch: int):
        self.file, self.job, self.stretch = file, job, stretch
        self.behind, self.background = Behind("wan22-hash"), ThreadPoolExecutor(1, "wan22-sync")
        self.body = hashlib.sha256()
        self.syncing: Future | None = None
        self.waiting, self.unsynced = [], 0

    def take(self, content: memoryview) -> None:
        """The next written bytes, in file order. Raises what went wrong with those before, as all below do."""
        self.behind.submit(self._hash, content, nbytes=len(content))

    def finish(self, row: dict, gap: bytes) -> None:
        """All bytes of a key but `gap`, zeros that follow it, were given to `take`. row: what the job file says of it; the hash up
        to here is added."""
        self.behind.submit(self._finish, row, gap)

    def enter(self) -> None:
        """Sync and record when all before is hashed; does not wait for it."""
        self.behind.submit(self._enter)

    def catch_up(self) -> None:
        """Wait until everything is hashed, synced and recorded; what is finished is recorded even if hashing went wrong."""
        try:
            self.behind.settle()
        finally:
            self._enter()
            self._settle()

    def close(self) -> None:
        """End both threads."""
        self.behind.close()
        self.background.shutdown(wait=True)

    def _hash(self, content: memoryview) -> None:
        self.body.update(content)
        self.unsynced += len(content)
        if self.unsynced >= self.stretch:
            self._enter()

    def _finish(self, row: dict, gap: bytes) -> None:
        self.body.update(gap)
        self.waiting.append({**row, "prefix": self.body.copy().hexdigest()})

    def _enter(self) -> None:
        """Hand the finished keys to the background. Waits for the stretch before: at most two are dirty."""
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
