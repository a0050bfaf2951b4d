"""The header of a GGUF file: metadata, and where which tensor lies. No weight is read, and the file is not kept open.

Magic, version, number of tensors and of fields; the fields; of each tensor its name, axes (innermost first), type and offset; from
the next multiple of the alignment on the tensors, each at such a multiple (source: ggml docs/gguf.md). The gguf library would map
the file into memory, which keeps Windows from replacing it, and does not say which tensor it stumbles over.
"""
import os
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import HeaderError
from ..header import FOREIGN
from .gguf_fields import Fields
from .gguf_tensors import AGAIN, GgufTensor, Stated, check_places, place, read_stated

MAGIC, ENDING = b"GGUF", ".gguf"
START = 24                                         # bytes: magic, version, number of tensors, of fields
VERSIONS = (2, 3)                                  # the first counted in 32 bit
MAX_ENTRIES = 200_000                              # tensors or fields of a sane file; a real one has about 1100 and 30
ALIGNMENT = 32                                     # where general.alignment says nothing


@dataclass(frozen=True)
class GgufHeader:
    """metadata: field -> number, text or list, longer lists left out; tensors: in file order; sha256: of all before the tensors."""

    path: str
    size: int
    mtime_ns: int
    metadata: Mapping[str, object]
    tensors: tuple[GgufTensor, ...]
    sha256: str


def is_gguf(path: str | os.PathLike) -> bool:
    """Whether the file begins as a GGUF does, or is called one."""
    if os.fspath(path).lower().endswith(ENDING) and not os.path.isdir(path):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False                               # a folder, or the reader that follows says why


def open_gguf(path: str | os.PathLike) -> GgufHeader:
    """Reads the header alone, whatever the file's size. Raises HeaderError that names the file, and the tensor at fault if one is:
    no GGUF, damaged, or cut short."""
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            _check_start(path, file.read(START))
            file.seek(0)
            fields = Fields(file, status.st_size)
            metadata, stated = _read(fields)
            alignment = _alignment(metadata)
            fields.take(-fields.at % alignment if stated else 0)
    except OSError as cause:
        raise HeaderError(f"{path}: expected a GGUF file, found none to read: {cause.strerror or cause}, check the path") from cause
    except ValueError as cause:
        raise HeaderError(f"{path}: expected a whole GGUF file, found a damaged header ({str(cause)[:200]}), {AGAIN}") from cause
    tensors = place(path, stated, metadata, fields.at)
    check_places(path, tensors, fields.at, alignment, status.st_size)
    return GgufHeader(path, status.st_size, status.st_mtime_ns, metadata, tuple(tensors), fields.sha256.hexdigest())


def _check_start(path: str, start: bytes) -> None:
    if len(start) < START or not start.startswith(MAGIC):
        what = next((f" ({what})" for magic, what in FOREIGN if start.startswith(magic) and magic != MAGIC), "")
        raise HeaderError(f"{path}: expected a GGUF file, found one that starts with {start[:4]!r}{what}, choose another")
    if max(int.from_bytes(start[8:16], "little"), int.from_bytes(start[16:24], "little")) > MAX_ENTRIES:
        raise HeaderError(f"{path}: expected at most {MAX_ENTRIES} tensors, found more, the header is damaged or big-endian")


def _read(fields: Fields) -> tuple[dict[str, object], list[Stated]]:
    """Metadata, and what is stated of each tensor. Raises ValueError."""
    fields.take(len(MAGIC))
    version = fields.number("I")
    if version not in VERSIONS:
        raise ValueError(f"version {version}, known are {VERSIONS[0]} and {VERSIONS[1]}")
    tensors, count = fields.number("Q"), fields.number("Q")
    metadata: dict[str, object] = {}
    for _ in range(count):
        name = fields.text()
        if name in metadata:
            raise ValueError(f"two fields {name[:99]!r}")
        metadata[name] = fields.value(fields.number("I"))
    stated: dict[str, Stated] = {}
    for _ in range(tensors):
        each = read_stated(fields)
        if each.name in stated:
            raise ValueError(f"two tensors {each.name[:99]!r}")
        stated[each.name] = each
    return {name: value for name, value in metadata.items() if value is not None}, list(stated.values())


def _alignment(metadata: Mapping[str, object]) -> int:
    found = metadata.get("general.alignment", ALIGNMENT)
    if type(found) is not int or found < 1 or found & (found - 1):
        raise ValueError(f"general.alignment {str(found)[:40]}, which is no power of 2")
    return found
