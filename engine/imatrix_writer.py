"""Writing an importance matrix, in either format of llama.cpp's imatrix tool (imatrix.py, imatrix_legacy.py).

What is written is what was added up, Σ x² and a count, so that llama.cpp can go on adding. Its quantizer wants all three imatrix.*
fields. general.architecture, which the tool leaves out, stands in ours because the gguf library writes no file without.
"""
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from .errors import PlanError
from .imatrix import COUNTS, SUMS
from .imatrix_legacy import compose
from .open_file import naming, open_write
from .system import replace

ARCHITECTURE = "wan"
CHUNK = 512                                        # inputs; the tool's own default context
UNNAMED = "calibration"


@dataclass(frozen=True)
class Sum:
    """What a layer's inputs add up to. squares: (in_features,), Σ x², float32 or float64; count: how many x, at least 1."""

    squares: torch.Tensor
    count: int


def write_imatrix(path: str | os.PathLike, sums: Mapping[str, Sum], *, datasets: Sequence[str] = (),
                  chunk_size: int = CHUNK) -> str:
    """Path of the file, written whole or not at all: GGUF, or the older format where the path ends with `.dat`.

    sums: key with `.weight` -> Sum; datasets: what the inputs came from, in words, of which the older format holds the last;
    chunk_size: inputs that count as one chunk. Raises PlanError for a sum that is none, and when the path cannot be written.
    """
    path = os.fspath(path)
    if not sums:
        raise PlanError(f"{path}: expected a layer with inputs, found none; calibrate first")
    for key, each in sums.items():
        if each.count < 1 or not torch.isfinite(each.squares.float()).all() or each.squares.min() < 0:
            raise PlanError(f"{path}: {key}: expected finite sums of squares of at least one input, found {each.count} inputs and "
                            f"sums from {each.squares.min().item():g} to {each.squares.max().item():g}; calibrate again")
    chunks = {key: -(-each.count // chunk_size) for key, each in sums.items()}
    fresh, named = f"{path}.new", list(datasets) or [UNNAMED]
    if Path(path).suffix.lower() == ".dat":
        means = {key: (each.squares.double() / each.count).float() for key, each in sums.items()}
        with open_write(fresh, resume=False) as file:
            file.write_at(0, compose(means, chunks, named[-1]))
            file.sync()
    else:
        with naming(path, "written"):
            _write_gguf(fresh, sums, {"imatrix.chunk_count": max(chunks.values()), "imatrix.chunk_size": chunk_size}, named)
    return replace(fresh, path)[0]


def _write_gguf(path: str, sums: Mapping[str, Sum], numbers: Mapping[str, int], datasets: list[str]) -> None:
    import numpy as np
    from gguf import GGUFWriter  # here, not above: a ComfyUI without it still starts

    writer = GGUFWriter(path, ARCHITECTURE)
    try:
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", datasets)
        for name, number in numbers.items():
            writer.add_uint32(name, number)
        for key in sorted(sums):                   # as the tool sorts them
            writer.add_tensor(key + SUMS, sums[key].squares.cpu().float().reshape(1, -1).numpy())
            writer.add_tensor(key + COUNTS, np.array([[sums[key].count]], dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
