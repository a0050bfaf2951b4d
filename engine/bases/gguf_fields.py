"""Numbers, texts and lists one after another in the header of a GGUF file, none believed that the file cannot hold.

Little-endian; a text is its length (uint64) and UTF-8; a list is the type of its items (uint32), their number (uint64) and they
themselves (source: ggml docs/gguf.md, gguf_metadata_value_t). Whatever is wrong is a ValueError.
"""
import hashlib
import struct
from typing import BinaryIO

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9
MAX_HEADER_BYTES = 100_000_000                     # as of safetensors (header.py); a real one has 100 KB, with a tokenizer 10 MB
MOST_WORDS = 1_000_000                             # a tokenizer has 250,000
LONGEST_LIST = 16                                  # that is kept; longer ones are a tokenizer's
DEEPEST = 4                                        # lists in lists; no writer makes any


class Fields:
    """The header, front to back. `sha256` covers what has been taken."""

    def __init__(self, file: BinaryIO, size: int):
        self.at, self.sha256 = 0, hashlib.sha256()
        self._file, self._limit, self._size = file, min(size, MAX_HEADER_BYTES), size

    def take(self, count: int) -> bytes:
        """The next bytes. Raises ValueError where the file has fewer; nothing is reserved before that is known."""
        if count > self._limit - self.at:
            found = f"the file ends at {self._size}" if self._limit == self._size else f"a header has at most {MAX_HEADER_BYTES}"
            raise ValueError(f"{count} bytes expected at {self.at}, {found}")
        body = self._file.read(count)
        if len(body) < count:
            raise ValueError(f"{count} bytes expected at {self.at}, {len(body)} could be read")
        self.sha256.update(body)
        self.at += count
        return body

    def number(self, code: str) -> int | float | bool:
        """code: of the struct module."""
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode()

    def value(self, kind: int, depth: int = 0) -> object:
        """One value of metadata; None for a list that is longer than LONGEST_LIST."""
        if kind == TEXT:
            return self.text()
        if kind == LIST:
            return self._list(depth + 1)
        if kind not in SCALARS:
            raise ValueError(f"a value of type {kind} at {self.at}")
        return self.number(SCALARS[kind])

    def _list(self, depth: int) -> list | None:
        kind, count = self.number("I"), self.number("Q")
        if depth > DEEPEST or (kind not in SCALARS and count > MOST_WORDS):
            raise ValueError(f"a list of {count} items, {depth} deep, at {self.at}")
        if kind in SCALARS:
            size = struct.calcsize("<" + SCALARS[kind])
            found = memoryview(self.take(count * size))[:LONGEST_LIST * size]
            items = struct.unpack(f"<{len(found) // size}{SCALARS[kind]}", found)
        else:
            items = []
            for number in range(count):
                item = self.value(kind, depth)
                if number < LONGEST_LIST:
                    items.append(item)
        return list(items) if count <= LONGEST_LIST else None
