"""The seam to the operating system: opening, renaming, syncing, free space, legal names, hashes of files.

Everything that differs between Linux, Windows and macOS is decided here and in open_file.py, and nowhere else.
"""
import hashlib
import json
import os
import shutil
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path

from . import open_file
from .errors import PlanError
from .open_file import ReadFile, WriteFile, naming, open_read, open_write

__all__ = ["ReadFile", "WriteFile", "free_bytes", "hash_file", "legal_name", "naming", "next_free", "open_read", "open_write",
           "processors", "read_json", "replace", "sync_folder", "write_json"]

HELD = {5, 32, 1224}  # winerror (Microsoft, System Error Codes): access denied, sharing violation, user-mapped section open
WAITS = (0.1, 0.2, 0.4, 0.6, 0.7)  # seconds between tries: a virus scanner lets go of a new file within two seconds
RESERVED = {"CON", "PRN", "AUX", "NUL", *(port + digit for port in ("COM", "LPT") for digit in "123456789¹²³")}
FORBIDDEN = '/\\<>:"|?*'  # separators, and what NTFS and FAT refuse
LONGEST_NAME = 200  # bytes; most file systems stop at 255, and `.part.job.json` must still fit behind it
PIECE = 1 << 22


def _is_held(cause: OSError) -> bool:
    return isinstance(cause, PermissionError) or getattr(cause, "winerror", None) in HELD


def _replace_patiently(source: str, target: str) -> None:
    """os.replace, tried again while somebody holds the target open. Raises the last OSError."""
    for wait in WAITS:
        try:
            return os.replace(source, target)
        except OSError as cause:
            if not _is_held(cause):
                raise
            time.sleep(wait)
    os.replace(source, target)


def next_free(target: str) -> str:
    """`name.ext` -> `name-2.ext`, or the first higher number that is free."""
    path, number = Path(target), 2
    while (free := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
        number += 1
    return str(free)


def replace(source: str | os.PathLike, target: str | os.PathLike) -> tuple[str, str | None]:
    """Rename `source` to `target`, over an older file of that name.

    Returns the path really used and None, or, when the older file stays held open (a loaded model on Windows),
    the next free name and the reason. Raises MergeError when no name in that folder works.
    """
    source, target = os.fspath(source), os.fspath(target)
    with naming(target, "put in place", "check the rights of the folder"):
        try:
            _replace_patiently(source, target)
        except OSError as cause:
            if not _is_held(cause) or not os.path.isfile(target):
                raise
            free = next_free(target)
            os.replace(source, free)
            return free, f"{os.path.basename(target)} is held open by another program, saved as {os.path.basename(free)}"
    return target, None


def sync_folder(path: str | os.PathLike) -> None:
    """Make a rename in the folder `path` last through a power cut. Windows has no such call and needs none."""
    if open_file.WINDOWS:
        return
    with naming(os.fspath(path), "synced"):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def write_json(path: str | os.PathLike, value: object) -> None:
    """Write `value` as JSON so that `path` always holds either the old or the new text, whole. NaN raises ValueError."""
    path = os.fspath(path)
    text = json.dumps(value, indent=1, allow_nan=False).encode()
    fresh = path + ".new"                           # one name: a kill in here leaves one file, and the next write takes it
    with open_write(fresh, resume=False) as file:
        file.write_at(0, text)
        file.sync()
    with naming(path, "put in place", "check the rights of the folder"):
        _replace_patiently(fresh, path)


def read_json(path: str | os.PathLike) -> object | None:
    """What `write_json` wrote; None when the file is absent, unreadable or damaged. For what can be found out again, only."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def processors() -> int:
    """Processors that this process may run on; a container may be given fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_bytes(path: str | os.PathLike) -> int:
    """Bytes free for this user where `path` lies or will lie."""
    folder = Path(path).absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    with naming(str(folder), "asked for free space"):
        return shutil.disk_usage(folder).free


def legal_name(name: str) -> str:
    """`name` itself when every system accepts it as a file's name. Raises PlanError that says what is wrong with it."""
    wrong = None
    if not name or name in (".", ".."):
        wrong = "it is empty or only dots"
    elif any("\ud800" <= sign <= "\udfff" for sign in name):
        wrong = "it holds characters that no file system can store"
    elif found := [sign for sign in name if sign in FORBIDDEN or unicodedata.category(sign) == "Cc"]:
        wrong = f"it holds {found[0]!r}"
    elif name.split(".")[0].rstrip().upper() in RESERVED:
        wrong = f"{name.split('.')[0]} is a device on Windows"
    elif name[-1] in ". ":
        wrong = "it ends with a dot or a space, which Windows drops"
    elif (length := len(name.encode())) > LONGEST_NAME:
        wrong = f"it is {length} bytes long, at most {LONGEST_NAME} fit"
    if wrong:
        raise PlanError(f"file name {name!r}: expected a name that every system accepts, but {wrong}: choose another")
    return name


def hash_file(path: str | os.PathLike, tick: Callable[[], object] = bool) -> str:
    """SHA-256 of the file's bytes, as hex. Reads 4 MiB at a time; `tick` is called after each and may raise to stop."""
    digest, piece = hashlib.sha256(), memoryview(bytearray(PIECE))
    with naming(os.fspath(path), "hashed"), open(path, "rb", buffering=0) as file:
        while count := file.readinto(piece):
            digest.update(piece[:count])
            tick()
    return digest.hexdigest()
