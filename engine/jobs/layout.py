"""Where every byte of an output file lies, from headers alone: the safetensors header, padded, and the offset of each tensor.

Order of the data: the tensors that are written in row bands ("body", in processing order), the `comfy_quant` entries, then the
float32 tensors without rows, as scales and codebooks ("tail"). So the body can be hashed while it is written, and the tail, a few
hundred bytes a layer, at the end. A `comfy_quant` entry is JSON, so trailing spaces inside it restore the alignment of what follows
without a hole.

Header: 8 bytes of length, JSON, spaces (safetensors README, "Format"). 64 KB of spaces stay for later edits of the metadata in
place.
"""
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ..errors import PlanError
from ..specs import NAMES, TensorSpec

PADDING = 64 * 1024
ALIGNMENT = 4096                                   # of the data's start: a page, so that a few more words in it move nothing
HASH_SLOT = "0x" + "0" * 64                        # as long as the hash that replaces it when the data are known


@dataclass(frozen=True)
class Layout:
    """A planned file."""

    header: bytes                                  # the 8 length bytes, JSON, padding
    tensors: dict[str, tuple[TensorSpec, int]]     # name -> spec and absolute offset, in file order
    tail: int                                      # absolute offset of the first tensor that is not hashed while written
    constants: dict[str, bytes] = field(default_factory=dict)   # name -> bytes known beforehand
    metadata: Mapping[str, str] = field(default_factory=dict)   # what the header says besides
    alignment: int = 1                             # every tensor of the body is followed by zeros up to a multiple of this

    @property
    def size(self) -> int:
        return self.end(next(reversed(self.tensors)))

    def end(self, name: str) -> int:
        """Absolute offset of what follows a tensor."""
        spec, start = self.tensors[name]
        return start + spec.nbytes + self.gap(name)

    def gap(self, name: str) -> int:
        """Zeros between a tensor and what follows."""
        return -self.tensors[name][0].nbytes % self.alignment

    def sealed_header(self, sha256: str) -> bytes:
        """The header with the hash of the data in its slot; unchanged when the metadata have no slot for it."""
        return self.header.replace(HASH_SLOT.encode(), f"0x{sha256}".encode(), 1)


def pad_entry(entry: dict, offset: int, alignment: int) -> bytes:
    """`comfy_quant` JSON, with spaces so that whatever follows at `offset` + its length is aligned."""
    text = json.dumps(entry).encode()
    return text + b" " * (-(offset + len(text)) % alignment)


def place(body: dict[str, TensorSpec], entries: dict[str, dict], scales: dict[str, TensorSpec | bytes],
          metadata: dict[str, str]) -> Layout:
    """Lay out a file.

    body: tensors written in bands, in processing order; entries: `comfy_quant` objects; scales: the other small tensors, bytes for
    a float32 scalar that is known already. Raises PlanError when a tensor would be misaligned, which only an odd dtype mix can
    cause.
    """
    specs, constants, offset = dict(body), {}, sum(spec.nbytes for spec in body.values())
    tail = offset
    for name, entry in entries.items():
        constants[name] = pad_entry(entry, offset, 8 if scales else 1)
        specs[name] = TensorSpec((len(constants[name]),), torch.uint8)
        offset += len(constants[name])
    for name, spec in scales.items():
        if isinstance(spec, bytes):
            constants[name] = spec
        specs[name] = TensorSpec((), torch.float32) if isinstance(spec, bytes) else spec
    return _with_header(specs, constants, tail, metadata)


def _with_header(specs: dict[str, TensorSpec], constants: dict[str, bytes], tail: int, metadata: dict[str, str]) -> Layout:
    header, relative, end = ({"__metadata__": metadata} if metadata else {}), {}, 0
    for name, spec in specs.items():
        relative[name] = end
        if end % spec.dtype.itemsize:
            raise PlanError(f"{name}: {spec.dtype} would start at byte {end}, not a multiple of its size; choose fp32 or bf16")
        header[name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [end, end := end + spec.nbytes]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (PADDING + -(len(text) + PADDING + 8) % ALIGNMENT)
    start = 8 + len(text)
    placed = {name: (spec, start + relative[name]) for name, spec in specs.items()}
    return Layout(len(text).to_bytes(8, "little") + text, placed, start + tail, constants, metadata)
