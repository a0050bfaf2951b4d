"""The older file of an importance matrix, `.dat`, of llama.cpp's imatrix tool: bytes to numbers and back.

Little-endian, without a magic number (tools/imatrix/imatrix.cpp, save_imatrix_legacy):
    int32 entries; per entry: int32 length, name, int32 calls, int32 values, float32 values[]; int32 calls; int32 length, data set
A value is calls * Σ x² / count, so that values / calls is the mean of x², with calls = count / rows of a chunk, rounded up. Files
from before 2024 end after the last entry.
"""
import struct
from collections.abc import Mapping

import torch

LONGEST_NAME = 4096                                # bytes; ggml's own names end at 64, a path of a data set is longer
INT = struct.Struct("<i")


class Damage(Exception):
    """What is wrong, and in which entry; the caller names the file."""


class _Bytes:
    """A file read front to back, that never gives what is not there."""

    def __init__(self, body: memoryview):
        self.body, self.at = body, 0

    def take(self, nbytes: int, what: str) -> memoryview:
        if not 0 <= nbytes <= len(self.body) - self.at:
            raise Damage(f"expected {nbytes} bytes of {what} at byte {self.at}, found {len(self.body) - self.at}")
        self.at += nbytes
        return self.body[self.at - nbytes:self.at]

    def number(self, what: str, low: int, high: int = 2**31 - 1) -> int:
        found, = INT.unpack(self.take(INT.size, what))
        if not low <= found <= high:
            raise Damage(f"expected {what} from {low} to {high}, found {found}")
        return found

    def text(self, what: str, shortest: int = 0) -> str:
        found = bytes(self.take(self.number(f"the length of {what}", shortest, LONGEST_NAME), what))
        try:
            return found.decode()
        except UnicodeDecodeError as cause:
            raise Damage(f"expected {what} in UTF-8, found {found[:40]!r}") from cause


def parse(body: bytes) -> dict[str, torch.Tensor]:
    """Name -> mean of x², float32. Raises Damage."""
    file, found = _Bytes(memoryview(body)), {}
    for number in range(1, 1 + file.number("the number of entries", 1)):
        name = file.text(f"the name of entry {number}", 1)
        calls = file.number(f"the calls of {name}", 0)
        count = file.number(f"the number of values of {name}", 1)
        values = torch.frombuffer(bytearray(file.take(4 * count, f"the values of {name}")), dtype=torch.float32)
        if name in found:
            raise Damage(f"expected one entry {name}, found two")
        found[name] = values / calls if calls else values
    if file.at < len(body):                        # the calls and the data set, in newer ones
        file.number("the number of calls", 0)
        if file.at < len(body):
            file.text("the name of the data set")
    if file.at < len(body):
        raise Damage(f"expected the end at byte {file.at}, found {len(body) - file.at} bytes more")
    return found


def compose(means: Mapping[str, torch.Tensor], calls: Mapping[str, int], dataset: str) -> bytes:
    """The bytes of a file. means: name -> mean of x², (in_features,) float32; calls: name -> at least 1. Names are sorted, as the
    tool sorts them."""
    parts = [INT.pack(len(means))]
    for name in sorted(means):
        values = (means[name].cpu().float() * calls[name]).contiguous()
        parts += [*_text(name), INT.pack(calls[name]), INT.pack(values.numel()), values.numpy().astype("<f4").tobytes()]
    return b"".join([*parts, INT.pack(max(calls.values())), *_text(dataset)])


def _text(text: str) -> tuple[bytes, bytes]:
    body = text.encode()
    return INT.pack(len(body)), body
