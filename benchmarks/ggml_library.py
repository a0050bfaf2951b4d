"""What the GGUF types are measured against: ggml's own C encoders, by ctypes, from a library that was built apart.

The library is llama.cpp's `ggml-base`; it is no part of the pack and needed by nothing but benchmarks and the script of the golden.
Figures hold for the flags that stock builds give it on x86-64, -O3 for SSE2: with FMA its own bytes differ. Its calls let go of the
GIL, so threads of Python run them side by side.
"""
import ctypes
import os
from pathlib import Path

import gguf
import torch

TYPES = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS")
VARIABLE = "GGML_LIBRARY"                          # of the environment: the library's path


class Ggml:
    """path: the shared library."""

    def __init__(self, path: Path | str):
        library = ctypes.CDLL(str(Path(path).resolve()))
        self.call = library.ggml_quantize_chunk    # ggml.h: type, from, to, start, rows, columns, imatrix; returns bytes
        self.call.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
        self.call.restype = ctypes.c_size_t

    def quantize(self, name: str, weight: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
        """(rows, bytes of a row) uint8, as llama-quantize writes it.

        weight: (rows, columns), importance: (columns,), float32, contiguous, on the CPU. None: the search without an imatrix, which
        Q8_0 always takes. Raises ValueError for other shapes: the library would end the process.
        """
        kind = gguf.GGMLQuantizationType[name]
        size, nbytes = gguf.GGML_QUANT_SIZES[kind]
        rows, columns = weight.shape
        for tensor in (weight,) if importance is None else (weight, importance):
            if columns % size or tensor.shape[-1] != columns or tensor.dtype != torch.float32 or not tensor.is_contiguous():
                raise ValueError(f"{name}: expected contiguous float32 rows of whole blocks of {size}, got {tuple(tensor.shape)}")
        stored = torch.empty(rows, columns // size * nbytes, dtype=torch.uint8)
        wrote = self.call(int(kind), weight.data_ptr(), stored.data_ptr(), 0, rows, columns,
                          None if importance is None else importance.data_ptr())
        if wrote != stored.numel():
            raise ValueError(f"{name}: expected {stored.numel()} bytes of ggml, got {wrote}")
        return stored


def decode(name: str, stored: torch.Tensor) -> torch.Tensor:
    """(rows, columns) float32, by gguf-py, whoever wrote the rows."""
    return torch.from_numpy(gguf.quants.dequantize(stored.numpy(), gguf.GGMLQuantizationType[name]))


def named(path: str | None = None) -> Ggml | None:
    """The library at `path`, else the one that GGML_LIBRARY names; None where neither does."""
    path = path or os.environ.get(VARIABLE)
    return Ggml(path) if path else None
