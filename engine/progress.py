"""What a person sees while a job runs: bytes, rate, time left; and the read-ahead that keeps the disk busy."""
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One step of a job. Bytes are of the source, as stored."""

    expert: str
    key: str
    phase: str                                     # "measure", "write", "check"
    done_bytes: int
    total_bytes: int
    seconds: float
    bytes_per_s: float

    @property
    def eta_s(self) -> float | None:
        """Seconds left at the mean rate so far; None before there is one."""
        return (self.total_bytes - self.done_bytes) / self.bytes_per_s if self.bytes_per_s else None


def silent(progress: Progress) -> None:
    """Nobody looks."""


class Clock:
    """Counts bytes of one job and tells them to `on_progress`. Bytes that an earlier run did count as done, not as speed."""

    def __init__(self, total: int, on_progress: Callable[[Progress], None]):
        self.total, self.tell = total, on_progress
        self.done = self.skipped = 0
        self.start = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def skip(self, nbytes: int) -> None:
        self.skipped += nbytes
        self.done += nbytes

    def advance(self, nbytes: int, expert: str, key: str, phase: str) -> None:
        self.done += nbytes
        elapsed = self.seconds
        rate = (self.done - self.skipped) / elapsed if elapsed else 0.0
        self.tell(Progress(expert, key, phase, self.done, self.total, elapsed, rate))


class ReadAhead:
    """Tells the system which tensors come next, on a thread of its own, within a budget of bytes beyond the current one."""

    def __init__(self, source, keys: list[str], budget: int = 512 * 1024 * 1024):
        self.source, self.keys, self.budget = source, keys, budget
        self.thread = ThreadPoolExecutor(1, "wan22-ahead")
        self.told = self.ahead = 0

    def __enter__(self) -> "ReadAhead":
        return self

    def __exit__(self, *error) -> None:
        self.thread.shutdown(wait=True, cancel_futures=True)

    def now(self, number: int) -> None:
        """The tensor at `number` of the keys begins."""
        if number and number <= self.told:
            self.ahead -= self.source.nbytes(self.keys[number - 1])
        while self.told < len(self.keys) and (self.ahead < self.budget or self.told <= number):
            key = self.keys[self.told]
            self.ahead += self.source.nbytes(key)
            self.told += 1
            self.thread.submit(self.source.advise, key)
