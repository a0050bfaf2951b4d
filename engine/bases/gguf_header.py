"""The header of a GGUF file by the gguf library: metadata and tensors, no weight is read.

The library maps the file into memory and gives every tensor as a view. It believes what the header says: a count of tensors, fields
or words of a list that no file can hold would have it fill the memory, so counts are checked before, and no read may pass the end.
"""
import os
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import HeaderError

MAGIC = b"GGUF"
START = 24                                         # bytes: magic, version, number of tensors, of fields (ggml docs/gguf.md)
MAX_ENTRIES = 200_000                              # tensors or fields of a sane file; a real one has about 1100 and 30
LONGEST_LIST = 16                                  # of metadata; a tokenizer's has 250,000 words
# What GGUFReader raises on bytes that are no GGUF; lists in lists as deep as Python goes are a RecursionError.
DAMAGE = (ValueError, IndexError, KeyError, OverflowError, TypeError, MemoryError, RecursionError)


@dataclass(frozen=True)
class GgufHeader:
    """metadata: field -> value as the library gives it, longer lists left out; tensors: gguf.ReaderTensor, in file order."""

    metadata: dict[str, object]
    tensors: Sequence


def open_gguf(path: str | os.PathLike) -> GgufHeader:
    """Reads the header alone, whatever the file's size. Raises HeaderError: no GGUF file, or damaged; it names the file."""
    from gguf import GGUFReader  # here, not above: a ComfyUI without it still starts, and only GGUF files need it

    class Reader(GGUFReader):
        def _get(self, offset, dtype, count=1, *more, **named):
            """As the library's, which gives an empty array past the end and goes on with that."""
            found = super()._get(offset, dtype, count, *more, **named)
            if len(found) < count:
                raise ValueError(f"the file ends within what lies at byte {offset}")
            return found

    try:
        with open(path, "rb") as file:
            start = file.read(START)
        _check_start(path, start)
        reader = Reader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()
                    if not name.startswith("GGUF.") and len(field.data) <= LONGEST_LIST}
    except OSError as cause:
        raise HeaderError(f"{path}: expected a GGUF file, found none to read: {cause.strerror or cause}, check the path") from cause
    except DAMAGE as cause:
        found = str(cause)[:99] or type(cause).__name__
        raise HeaderError(f"{path}: expected a whole GGUF file, found a damaged header ({found}), download it again") from cause
    return GgufHeader(metadata, reader.tensors)


def _check_start(path: str | os.PathLike, start: bytes) -> None:
    if len(start) < START or not start.startswith(MAGIC):
        raise HeaderError(f"{path}: expected a GGUF file, found one that starts with {start[:4]!r}, choose another")
    if max(int.from_bytes(start[8:16], "little"), int.from_bytes(start[16:24], "little")) > MAX_ENTRIES:
        raise HeaderError(f"{path}: expected at most {MAX_ENTRIES} tensors, found more, the header is damaged or big-endian")
