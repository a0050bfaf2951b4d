"""Positioned reads and writes of one open file, alike on Linux, Windows and macOS.

os.preadv, os.pwrite, os.posix_fallocate, os.posix_fadvise and os.fdatasync are missing on Windows, some of them on macOS too.
"""
import errno
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .errors import MergeError, PlanError

WINDOWS = sys.platform == "win32"
BINARY = getattr(os, "O_BINARY", 0)
PIECE = 1 << 30  # macOS refuses single reads and writes of 2 GiB and more, Linux cuts them short (read(2), RETURN VALUE)
SCRATCH = 1 << 20
FULL, NO_MEMORY = {112, 39}, 1455  # winerror (Microsoft, System Error Codes): disk full; paging file too small


@contextmanager
def naming(path: str, verb: str, remedy: str = "check the disk and the rights of the file") -> Iterator[None]:
    """Turn an OSError inside into a MergeError that names `path`; a full disk into PlanError, lack of memory into MemoryError."""
    try:
        yield
    except OSError as cause:
        code, windows = cause.errno, getattr(cause, "winerror", None)
        if code == errno.ENOMEM or windows == NO_MEMORY:
            raise MemoryError(f"{path}: cannot be {verb}: {cause.strerror}") from cause
        if code in (errno.ENOSPC, getattr(errno, "EDQUOT", None)) or windows in FULL:
            way_out = "free some space and resume: what is finished is kept"
            raise PlanError(f"{path}: cannot be {verb}: the disk is full, {way_out}") from cause
        if code == errno.EFBIG:
            way_out = "the file system takes no file of this size (FAT32 ends at 4 GiB), choose a folder on another disk"
            raise PlanError(f"{path}: cannot be {verb}: {way_out}") from cause
        raise MergeError(f"{path}: cannot be {verb}: {cause.strerror or cause}, {remedy}") from cause


class _File:
    """An open descriptor with positioned access, safe to use from several threads at once."""

    def __init__(self, path: str | os.PathLike, flags: int, verb: str):
        self.path, self._lock = os.fspath(path), threading.Lock()
        with naming(self.path, verb, "check that it exists and that you may open it"):
            self._fd = os.open(self.path, flags | BINARY, 0o666)

    def _read_some(self, view: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._fd, [view], offset)
        if hasattr(os, "pread"):
            found = os.pread(self._fd, len(view), offset)
        else:
            with self._lock:
                os.lseek(self._fd, offset, os.SEEK_SET)
                found = os.read(self._fd, len(view))
        view[: len(found)] = found
        return len(found)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` (contiguous, writable) with the bytes from `offset` on; it is modified.

        Raises MergeError when the file ends before.
        """
        view, done = memoryview(buffer), 0
        if not view.nbytes:
            return
        view = view.cast("B")
        with naming(self.path, "read"):
            while done < len(view):
                count = self._read_some(view[done:done + PIECE], offset + done)
                if not count:
                    raise MergeError(f"{self.path}: expected {len(view)} bytes at {offset}, found {done}, "
                                     "the file was cut short while it was open: copy or download it again")
                done += count

    def close(self) -> None:
        """Close the descriptor; calling it twice is allowed."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class ReadFile(_File):
    """A file to read from."""

    def advise(self, offset: int, nbytes: int) -> None:
        """Hint that these bytes are wanted soon. Without posix_fadvise they are read once, so that the system caches them."""
        with naming(self.path, "read"):
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._fd, offset, nbytes, os.POSIX_FADV_WILLNEED)
                return
            scratch, stop = memoryview(bytearray(min(nbytes, SCRATCH))), offset + nbytes
            while offset < stop and (count := self._read_some(scratch[:stop - offset], offset)):
                offset += count


class WriteFile(_File):
    """A file to write to, in any order."""

    def claim(self) -> None:
        """Keep other processes of this pack from writing the file until it is closed. Raises PlanError when one is at it.

        By flock (Linux, macOS); a system or network file system without it goes unguarded.
        """
        try:
            import fcntl

            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as cause:
            raise PlanError(f"{self.path}: another run is writing it; wait for it, or choose another name") from cause
        except (ImportError, OSError):
            return

    def clear(self) -> None:
        """Cut the file to nothing."""
        with naming(self.path, "written"):
            os.ftruncate(self._fd, 0)

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def _write_some(self, view: memoryview, offset: int) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self._fd, view, offset)
        with self._lock:
            os.lseek(self._fd, offset, os.SEEK_SET)
            return os.write(self._fd, view)

    def write_at(self, offset: int, buffer: memoryview) -> None:
        """Write all of `buffer` (any contiguous buffer) at `offset`. Raises PlanError when the disk is full."""
        view, done = memoryview(buffer), 0
        if not view.nbytes:
            return
        view = view.cast("B")
        with naming(self.path, "written"):
            while done < len(view):
                done += self._write_some(view[done:done + PIECE], offset + done)

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """`nbytes` bytes from `offset` on. Raises MergeError when there are fewer."""
        found = bytearray(nbytes)
        self.read_into(offset, found)
        return bytes(found)

    def preallocate(self, nbytes: int) -> None:
        """Cut or extend the file to `nbytes`, with its blocks reserved where the system can; what is written stays.

        On Windows a shorter file stays short: extending it would write zeros (_chsize_s), and writing in order extends it anyway.
        """
        with naming(self.path, "written"):
            if not WINDOWS or os.fstat(self._fd).st_size > nbytes:
                os.ftruncate(self._fd, nbytes)
            if hasattr(os, "posix_fallocate") and nbytes:
                try:
                    os.posix_fallocate(self._fd, 0, nbytes)
                except OSError as cause:
                    if cause.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # the file system cannot reserve
                        raise

    def sync(self) -> None:
        """Return only when the bytes lie on the disk. macOS needs F_FULLFSYNC: its fsync stops at the drive's cache (fsync(2))."""
        with naming(self.path, "written"):
            if sys.platform == "darwin":
                import fcntl

                with suppress(OSError):  # network file systems do not know it
                    fcntl.fcntl(self._fd, fcntl.F_FULLFSYNC)
                    return
            getattr(os, "fdatasync", os.fsync)(self._fd)


def open_read(path: str | os.PathLike) -> ReadFile:
    """Open for reading. Raises MergeError when it cannot be opened."""
    return ReadFile(path, os.O_RDONLY, "opened")


def open_write(path: str | os.PathLike, *, resume: bool) -> WriteFile:
    """Open for writing and reading back: a new, empty file, or with `resume` the one that is there (MergeError when it is not)."""
    return WriteFile(path, os.O_RDWR | (0 if resume else os.O_CREAT | os.O_TRUNC), "opened for writing")
