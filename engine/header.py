"""The safetensors header: which tensors a file holds and where, believing nothing until it adds up.

Layout (source: huggingface/safetensors, README "Format"): 8 bytes little-endian length N, N bytes of JSON
`{"key": {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}}`, then the tensors' bytes without
holes or overlaps. A header that bends any of this is refused here, before a tensor is read.
"""
import hashlib
import os
from dataclasses import dataclass
from typing import BinaryIO

from . import strict_json
from .errors import HeaderError
from .specs import DTYPES, TensorSpec

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # huggingface/safetensors, safetensors/src/tensor.rs, MAX_HEADER_SIZE
MAX_TENSORS = 200_000  # a Wan expert has about 1100; far above any real file, far below what hurts
MAX_AXES = 16  # a Wan tensor has at most 5; torch stops at 64
MAX_COUNT = 2**63 - 1  # torch counts elements in int64
FIELDS = {"dtype", "shape", "data_offsets"}
FOREIGN = (
    (b"GGUF", "a GGUF file"),
    (b"PK\x03\x04", "a zip or PyTorch file"),
    (b"\x80\x02\x8a\x0al\xfc\x9cF", "a pickled PyTorch file"),  # torch's legacy magic number; two bytes may be a length
    (b"version ", "a git LFS pointer, not the file itself"),
    (b"<!DOCTYP", "a web page, not the file itself"),
    (b"<html", "a web page, not the file itself"),
)


@dataclass(frozen=True)
class Entry:
    """One stored tensor: what it is, and the absolute offset of its first byte in the file."""

    spec: TensorSpec
    start: int

    @property
    def nbytes(self) -> int:
        return self.spec.nbytes

    @property
    def stop(self) -> int:
        return self.start + self.spec.nbytes


@dataclass(frozen=True)
class Header:
    """One file's tensors in file order. `sha256` covers the 8 length bytes and the JSON: cheap identity of the layout."""

    path: str
    size: int
    mtime_ns: int
    entries: dict[str, Entry]
    metadata: dict[str, str]
    sha256: str


def read_header(path: str | os.PathLike) -> Header:
    """Header of the safetensors file at `path`, checked against the file's size.

    Raises HeaderError naming the file, the key where there is one, what was expected, what was found and what to do.
    Reads at most the header's own bytes (capped at 100 MB), never a tensor.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            status = os.fstat(file.fileno())
            raw = _raw(path, file)
    except OSError as cause:
        raise HeaderError(f"{path}: cannot be read: {cause.strerror or cause}; check the path and the permissions") from cause
    fields = _parse(path, raw[LENGTH_BYTES:])
    metadata = _metadata(path, fields.pop("__metadata__", {}))
    if len(fields) > MAX_TENSORS:
        raise HeaderError(f"{path}: expected at most {MAX_TENSORS} tensors, found {len(fields)}; this is not a model file")
    entries = {key: _entry(path, key, field, len(raw)) for key, field in fields.items()}
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)))
    _gapless(path, ordered, len(raw), status.st_size)
    return Header(path, status.st_size, status.st_mtime_ns, ordered, metadata, hashlib.sha256(raw).hexdigest())


def _raw(path: str, file: BinaryIO) -> bytes:
    """Length bytes and JSON bytes together."""
    first = file.read(LENGTH_BYTES)
    for magic, what in FOREIGN:
        if first.startswith(magic):
            raise HeaderError(f"{path}: expected a safetensors file, found {what}; choose or download the .safetensors file")
    if len(first) < LENGTH_BYTES:
        raise HeaderError(f"{path}: truncated: expected at least {LENGTH_BYTES} bytes, found {len(first)}; download it again")
    length = int.from_bytes(first, "little")
    if length > MAX_HEADER_BYTES:
        raise HeaderError(f"{path}: expected a header of at most {MAX_HEADER_BYTES} bytes, found {length}; not a safetensors file")
    missing = LENGTH_BYTES + length - os.fstat(file.fileno()).st_size
    if missing > 0:  # asked first: reading would reserve the memory that the length claims
        raise HeaderError(f"{path}: truncated: {missing} bytes missing inside the header, download it again")
    file.seek(0)
    return file.read(LENGTH_BYTES + length)


def _parse(path: str, body: bytes) -> dict:
    if not body.startswith(b"{"):
        raise HeaderError(f"{path}: expected a JSON object as header, found {body[:8]!r}; not a safetensors file")
    try:
        return strict_json.parse(body)
    except ValueError as cause:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise HeaderError(f"{path}: header: expected valid JSON, found: {str(cause)[:200]}; download it again") from cause


def _metadata(path: str, found: object) -> dict[str, str]:
    if isinstance(found, dict) and all(isinstance(text, str) and strict_json.is_text(name + text) for name, text in found.items()):
        return found
    raise HeaderError(f"{path}: __metadata__: expected text values by name, found {str(found)[:80]!r}; the file is damaged")


def _entry(path: str, key: str, field: object, base: int) -> Entry:
    where = f"{path}: {key[:200]!r}"
    if not strict_json.is_text(key):
        raise HeaderError(f"{where}: expected a name in valid Unicode; the file is damaged")
    if not isinstance(field, dict) or field.keys() != FIELDS:
        raise HeaderError(f"{where}: expected dtype, shape and data_offsets, found {str(field)[:80]}; the file is damaged")
    name, shape, offsets = field["dtype"], field["shape"], field["data_offsets"]
    if not isinstance(name, str) or name not in DTYPES:
        raise HeaderError(f"{where}: expected a dtype of {', '.join(DTYPES)}, found {str(name)[:40]!r}; use another file")
    if not _counts(shape) or len(shape) > MAX_AXES or not _is_countable(shape):
        raise HeaderError(f"{where}: expected a shape of whole numbers >= 0, found {str(shape)[:80]}; the file is damaged")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise HeaderError(f"{where}: expected offsets [begin, end], found {str(offsets)[:80]}; the file is damaged")
    spec = TensorSpec(tuple(shape), DTYPES[name])
    if offsets[1] - offsets[0] != spec.nbytes:
        span = offsets[1] - offsets[0]
        raise HeaderError(f"{where}: expected {spec.nbytes} bytes for {name} {list(shape)}, found {span}; the file is damaged")
    return Entry(spec, base + offsets[0])


def _counts(found: object) -> bool:
    return isinstance(found, list) and all(type(number) is int for number in found)  # a bool is an int to isinstance


def _is_countable(shape: list[int]) -> bool:
    """No partial product overflows, not even where a later axis is 0."""
    product = 1
    for axis in shape:
        product *= axis
        if product > MAX_COUNT:
            return False
    return True


def _gapless(path: str, entries: dict[str, Entry], base: int, size: int) -> None:
    end, before = base, "the header"
    for key, entry in entries.items():
        if entry.start != end:
            what = f"overlaps {before}" if entry.start < end else f"leaves {entry.start - end} unused bytes after {before}"
            raise HeaderError(f"{path}: {key[:200]!r} {what}: expected at {end}, found at {entry.start}; the file is damaged")
        end, before = entry.stop, repr(key[:200])
    if end > size:
        raise HeaderError(f"{path}: truncated: {end - size} bytes missing, download it again")
    if end < size:
        raise HeaderError(f"{path}: expected {end} bytes, found {size - end} more at the end; download it again")
