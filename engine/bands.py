"""Row bands, and the worker threads that take them: the unit in which every tensor is read, merged and quantized.

A band is a multiple of 128 rows (one scale tile of the block-scaled formats) of about 0.65 M elements, so that it stays in the
cache between the steps. Its size depends on the shape alone: a float32 product may depend on its number of rows, the bytes must
not.
Each worker computes with one torch thread: torch's own threads spin on small tiles (docs/log.md), and MKL shares a product out by
their number, which shows in its last bits.
"""
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from math import prod
from typing import TypeVar

import torch

from .errors import Stopped
from .system import processors

TILE_ROWS = 128
BAND_ELEMENTS = 655_360                            # 128 rows of Wan's width 5120
MOST_THREADS = 8                                   # beyond it the disk decides, and each one costs two tiles of memory
T = TypeVar("T")
TILE_COLUMNS = 1280                                # 128 rows of it are 0.66 MB: a tile of a delta stays in a core's L2 cache
Rows = tuple[int, int]                             # (first, stop) of a band


def band_rows(shape: tuple[int, ...]) -> int:
    """Rows of a full band of a tensor of this shape."""
    return TILE_ROWS * max(1, BAND_ELEMENTS // (TILE_ROWS * max(1, prod(shape[1:]))))


def split(shape: tuple[int, ...]) -> list[Rows]:
    """(start, stop) of every band, in order; a 0-d tensor is one band of one row, an empty one has none."""
    total = shape[0] if shape else 1
    step = band_rows(shape)
    return [(start, min(start + step, total)) for start in range(0, total, step)]


def take_one_thread() -> None:
    """Let the calling thread, which must be one's own, compute with one torch thread for good.

    For whoever starts threads: torch's count for new ones is changed with it, and has to be put back, as `Workers` does.
    """
    torch.get_num_threads()                        # a thread takes over torch's count when first asked, and would do so later
    torch.set_num_threads(1)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one torch thread inside, whoever calls: for products whose bits would depend on the number."""
    before = torch.get_num_threads()
    if before == 1:                                # in a worker: torch's count for new threads is not touched
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Workers:
    """Threads that compute bands. Use in a `with` block: torch's thread count is put back at its end.

    should_stop is asked before every band.
    """

    def __init__(self, count: int | None = None, should_stop: Callable[[], bool] = bool):
        self.should_stop = should_stop
        self.count = count or min(MOST_THREADS, processors())

    def __enter__(self) -> "Workers":
        self.torch_threads = torch.get_num_threads()
        self.pool = ThreadPoolExecutor(self.count, "wan22-band", initializer=take_one_thread)
        return self

    def __exit__(self, *error) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self.torch_threads)

    def each(self, compute: Callable[[Rows], T], bands: Iterable[Rows]) -> Iterator[T]:
        """Results in band order. At most three bands a worker wait to be taken, so finished bands cannot pile up in memory.

        Raises Stopped before a band when `should_stop` says so; what an unfinished tensor wrote is not recorded and done again.
        """
        waiting: deque = deque()
        try:
            for rows in bands:
                if self.should_stop():
                    raise Stopped("stopped; what is finished and kept is not done again")
                waiting.append(self.pool.submit(_in_inference_mode, compute, rows))
                if len(waiting) > 3 * self.count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            for future in waiting:                 # none may still write when the caller has gone on
                if not future.cancelled():
                    future.exception()

    def map(self, compute: Callable[[Rows], T], bands: Iterable[Rows]) -> list[T]:
        """All results, in band order."""
        return list(self.each(compute, bands))


def _in_inference_mode(compute: Callable[[Rows], T], rows: Rows) -> T:
    # A thread does not inherit the caller's mode, and tensors made inside it cannot be changed outside.
    with torch.inference_mode():
        return compute(rows)
