"""A thread that follows others in order: what is written by many is hashed behind them by one, and they do not wait for it."""
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

LIMIT = 32 * 1024 * 1024                           # bytes that may wait: some dozen bands, so that the others never stand still


class Behind:
    """One caller hands work over, one thread does it. After something went wrong nothing more is done; the caller is told at the
    next call."""

    def __init__(self, name: str):
        self.pool = ThreadPoolExecutor(1, name)
        self.waiting: deque[tuple[Future, int]] = deque()
        self.held, self.broken = 0, False

    def submit(self, do: Callable, *content: object, nbytes: int = 0) -> None:
        """Do it when all before is done. nbytes: what `content` keeps in memory until then; waits while too much of it does.

        Raises what went wrong in something before.
        """
        while self.waiting and (self.held > LIMIT or self.waiting[0][0].done()):
            self._take()
        self.held += nbytes
        self.waiting.append((self.pool.submit(self._run, do, *content), nbytes))

    def settle(self) -> None:
        """Wait until everything is done. Raises what went wrong."""
        while self.waiting:
            self._take()

    def close(self) -> None:
        """Wait, and end the thread; what goes wrong now is not told."""
        self.pool.shutdown(wait=True)

    def _take(self) -> None:
        future, nbytes = self.waiting.popleft()
        self.held -= nbytes
        future.result()

    def _run(self, do: Callable, *content: object) -> None:
        if self.broken:
            return
        try:
            do(*content)
        except BaseException:
            self.broken = True
            raise
