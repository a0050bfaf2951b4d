"""Write a safetensors file of random values at the speed of the disk, in bounded memory, the same bytes for the same seed.

The values of a tensor are a slice of one random pool per standard deviation, shifted by a hash of the tensor's key.
"""
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from .errors import PlanError
from .specs import NAMES, TensorSpec
from .system import free_bytes

POOL = (1 << 23) + 9  # odd, so that a tensor longer than the pool does not repeat row by row


def seed_of(*parts: object) -> int:
    """56 bits that depend on all of `parts`."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:7], "big")


class Pools:
    """Normal values as bytes, one pool per standard deviation; a tensor is a slice that starts where its key's hash says."""

    def __init__(self, seed: object, dtype: torch.dtype, longest: int):
        self.seed, self.dtype, self.size, self._pools = seed, dtype, min(POOL, longest | 1), {}

    def _pool(self, std: float) -> memoryview:
        if std not in self._pools:
            draw = torch.Generator().manual_seed(seed_of(self.seed, std))
            values = torch.randn(self.size, generator=draw).mul_(std).to(self.dtype)
            self._pools[std] = memoryview(values.view(torch.uint8).numpy())
        return self._pools[std]

    def pieces(self, key: str, count: int, std: float) -> Iterator[memoryview]:
        """`count` values for `key`, as slices of the pool."""
        pool, width = self._pool(std), self.dtype.itemsize
        start = seed_of(self.seed, key) % self.size
        while count:
            step = min(count, self.size - start)
            yield pool[start * width:(start + step) * width]
            start, count = 0, count - step


def write_file(path: str | os.PathLike, specs: dict[str, TensorSpec], pieces: Iterator[memoryview], about: str) -> int:
    """A safetensors file with `specs` one after the other and the bytes of `pieces`; `about` goes into its metadata.

    Returns its size in bytes. Raises PlanError when the disk has less.
    """
    header, end = {"__metadata__": {"format": "pt", "synthetic": about}}, 0
    for key, spec in specs.items():
        header[key] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [end, end := end + spec.nbytes]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    if free_bytes(path) < end + len(text):
        raise PlanError(f"{path}: expected {end / 1e9:.1f} GB free, found {free_bytes(path) / 1e9:.1f}, free some space")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.new", "wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for piece in pieces:
            rest = piece
            while rest:
                rest = rest[file.write(rest):]
    os.replace(f"{path}.new", path)
    return os.path.getsize(path)
