"""How much of a part can be trusted: the finished keys whose bytes are on disk as they were recorded."""
import hashlib
import zlib
from collections.abc import Callable

from ..system import WriteFile
from .layout import Layout

PIECE = 4 * 1024 * 1024                            # read-back unit


def whole_prefix(file: WriteFile, layout: Layout, rows: list[dict],
                 tick: Callable[[], object]) -> tuple[list[dict], "hashlib._Hash"]:
    """The rows of a job file up to the first one that is damaged, and the running SHA-256 of the body up to there.

    rows: in file order, each with the body's hash up to its `end` and the checksum of its `sides`. The part is read once, in
    pieces; tick is called for each and may raise to stop. A part that is too short ends the trust where it ends.
    """
    at, running, trusted, size = len(layout.header), hashlib.sha256(), hashlib.sha256(), file.size
    for number, row in enumerate(rows):
        if row["end"] > size:
            return rows[:number], trusted
        while at < row["end"]:
            tick()
            piece = file.read_at(at, min(PIECE, row["end"] - at))
            running.update(piece)
            at += len(piece)
        if running.hexdigest() != row["prefix"] or _sides_checksum(file, layout, row["sides"], size) != row["crc"]:
            return rows[:number], trusted
        trusted = running.copy()
    return rows, trusted


def _sides_checksum(file: WriteFile, layout: Layout, names: list[str], size: int) -> int | None:
    checksum = 0
    for name in names:
        spec, start = layout.tensors[name]
        if start + spec.nbytes > size:
            return None
        checksum = zlib.crc32(file.read_at(start, spec.nbytes), checksum)
    return checksum
