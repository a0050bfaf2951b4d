"""What a stored tensor is, before it has bytes: names of dtypes, shapes, sizes."""
from dataclasses import dataclass
from math import prod

import torch

# Names as in the safetensors format (source: huggingface/safetensors, safetensors/src/tensor.rs, enum Dtype), and torch's for them.
TORCH_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu",
    "I16": "int16", "U16": "uint16", "F16": "float16", "BF16": "bfloat16",
    "I32": "int32", "U32": "uint32", "F32": "float32", "F64": "float64", "I64": "int64", "U64": "uint64",
}
# A torch without one of them (float8_e8m0fnu came with 2.7) cannot read a file that holds it; header.py says so.
DTYPES = {name: getattr(torch, each) for name, each in TORCH_NAMES.items() if hasattr(torch, each)}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype as stored; element count and bytes follow."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize
