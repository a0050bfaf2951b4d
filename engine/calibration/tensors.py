"""Tensors in a safetensors file: written one after the other as they are made, whole or not at all; read one by one.

Layout as in header.py. Wider types lie first, so that every tensor is aligned to its own size, which readers that map the file
need. The file is never mapped: Windows could not replace it while a map is open.
"""
import json
import os
from collections.abc import Callable, Mapping

import torch

from ..errors import HeaderError, PlanError
from ..header import LENGTH_BYTES, Header, read_header
from ..open_file import open_read, open_write
from ..specs import NAMES, TensorSpec
from ..system import replace, sync_folder

ALIGNMENT = 8                                      # huggingface/safetensors, README "Format": the header is padded to it


def write(path: str | os.PathLike, specs: Mapping[str, TensorSpec], fill: Callable[[str], torch.Tensor],
          metadata: Mapping[str, str]) -> None:
    """Write `specs` to `path`, which holds the old or the new file at any time, never half of one.

    fill: name -> the tensor, of that spec, asked once for each name; only one is held at a time.
    Raises ValueError for a tensor of another spec, PlanError on a full disk.
    """
    path, offset, said = os.fspath(path), 0, {"__metadata__": dict(metadata)}
    names = sorted(specs, key=lambda name: -specs[name].dtype.itemsize)
    for name in names:
        spec = specs[name]
        said[name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [offset, offset + spec.nbytes]}
        offset += spec.nbytes
    text = json.dumps(said, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    with open_write(path + ".new", resume=False) as file:
        file.write_at(0, len(text).to_bytes(LENGTH_BYTES, "little") + text)
        at = LENGTH_BYTES + len(text)
        for name in names:
            tensor = fill(name).contiguous()
            if (tuple(tensor.shape), tensor.dtype) != (specs[name].shape, specs[name].dtype):
                raise ValueError(f"{name}: expected {specs[name]}, found {tensor.dtype} {tuple(tensor.shape)}")
            file.write_at(at, memoryview(tensor.view(-1).view(torch.uint8).numpy()))
            at += specs[name].nbytes
        file.sync()
    placed, reason = replace(path + ".new", path)
    if reason:                                     # under another name nobody would find it
        os.remove(placed)
        raise PlanError(f"{path}: expected to replace it, but another program holds it open; close that program and try again")
    sync_folder(os.path.dirname(path))


class Stored:
    """A file of tensors by its header; each tensor is read when it is asked for, and the file is closed again."""

    def __init__(self, path: str | os.PathLike):
        """Raises HeaderError for a file that is no safetensors, or cut short."""
        header: Header = read_header(path)
        self.path, self.metadata, self.size, self.sha256 = header.path, header.metadata, header.size, header.sha256
        self._entries = header.entries
        self.specs = {name: entry.spec for name, entry in header.entries.items()}

    def read(self, name: str) -> torch.Tensor:
        """One tensor as stored. Raises HeaderError when there is none of that name."""
        if name not in self._entries:
            raise HeaderError(f"{self.path}: expected a tensor {name}, found none; the file is damaged")
        entry = self._entries[name]
        tensor = torch.empty(entry.spec.shape, dtype=entry.spec.dtype)
        with open_read(self.path) as file:
            file.read_into(entry.start, memoryview(tensor.view(-1).view(torch.uint8).numpy()))
        return tensor
