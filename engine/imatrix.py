"""Importance matrices: how much the squared error of a weight's column counts, read from what llama.cpp's imatrix tool writes.

    importance of column j of a layer = mean over the layer's inputs x of x_j²
because E‖(W − Ŵ)x‖² = Σ_j E[x_j²]·‖(W − Ŵ)_j‖² where the columns of x do not hang together.

A GGUF file (tools/imatrix/imatrix.cpp, save_imatrix) has general.type "imatrix", the fields imatrix.datasets, imatrix.chunk_count
and imatrix.chunk_size, and for each weight `<name>.in_sum2`, Σ x_j², and `<name>.counts`, how many x. The older file is told in
imatrix_legacy.py, writing in imatrix_writer.py. Names are those of weights, `blocks.0.ffn.2.weight`, here with or without a
checkpoint's prefix.
"""
import math
import os
from collections.abc import Mapping, Sequence

import torch

from .bases.gguf_header import MAGIC, open_gguf
from .bases.gguf_tensors import GgufTensor
from .bases.names import PREFIXES
from .errors import HeaderError, SourceError
from .imatrix_legacy import Damage, parse
from .open_file import ReadFile, naming, open_read
from .specs import TensorSpec

IMATRIX, SUMS, COUNTS = "imatrix", ".in_sum2", ".counts"   # general.type; ends of names
LARGEST = 1 << 30                                  # bytes; one of a Wan model has 10 MB, of the largest language models 200
SHOWN = 3                                          # names in one notice


def read_imatrix(path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Key -> importance of each column, (in_features,) float32, in the file's order; without a prefix, with `.weight`.

    Nothing of the model is known here: `check_imatrix` holds them against it. A layer without inputs gets 1 everywhere, as in
    llama.cpp. Raises HeaderError: damaged; SourceError: another file. Both name the file and the entry.
    """
    path = os.fspath(path)
    with naming(path, "read", "check the path"), open(path, "rb") as file:
        size, start = os.fstat(file.fileno()).st_size, file.read(len(MAGIC))
        if size > LARGEST:
            raise SourceError(f"{path}: expected an imatrix of at most {LARGEST} bytes, found {size}; choose another file")
        body = b"" if start == MAGIC else start + file.read()
    if start == MAGIC:
        found = _from_gguf(path)
    else:
        try:
            found = parse(body)
        except Damage as cause:
            raise HeaderError(f"{path}: {cause}; this is no importance matrix, or a damaged one: get it again") from cause
    keys = {name: _key(name) for name in found}
    if len(set(keys.values())) < len(keys):
        twice = next(key for key in keys.values() if list(keys.values()).count(key) > 1)
        raise HeaderError(f"{path}: {twice}: expected one entry, found it with and without a prefix; make the matrix again")
    return {keys[name]: values for name, values in found.items()}


def _key(name: str) -> str:
    bare = next(name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix))
    return bare if bare.endswith(".weight") else f"{bare}.weight"


def _from_gguf(path: str) -> dict[str, torch.Tensor]:
    header = open_gguf(path)
    kind = header.metadata.get("general.type")
    if kind != IMATRIX:
        raise SourceError(f"{path}: expected a GGUF of general.type imatrix, found {kind!r}; choose an importance matrix")
    tensors = {tensor.name: tensor for tensor in header.tensors}
    for name, tensor in tensors.items():
        if tensor.tensor_type.name != "F32":
            raise HeaderError(f"{path}: {name}: expected F32, found {tensor.tensor_type.name}; make the matrix again")
    names = [name.removesuffix(SUMS) for name in tensors if name.endswith(SUMS)]
    with open_read(path) as file:
        return {name: _mean(file, name, tensors[name + SUMS], tensors.get(name + COUNTS)) for name in names}


def _mean(file: ReadFile, name: str, sums: GgufTensor, counts: GgufTensor | None) -> torch.Tensor:
    """Of one entry."""
    numbers = [] if counts is None else _values(file, counts).tolist()
    if len(numbers) != 1:
        raise HeaderError(f"{file.path}: {name}: expected one number in {name}{COUNTS}, found {len(numbers)}; choose an importance "
                          "matrix of a Wan model")
    if not 0 <= numbers[0] < math.inf:             # false for NaN
        raise HeaderError(f"{file.path}: {name}{COUNTS}: expected a count, found {numbers[0]}; make the matrix again")
    values = _values(file, sums)
    return values / numbers[0] if numbers[0] else torch.ones_like(values)


def _values(file: ReadFile, tensor: GgufTensor) -> torch.Tensor:
    body = bytearray(tensor.nbytes)
    file.read_into(tensor.start, body)
    return torch.frombuffer(body, dtype=torch.float32) if body else torch.empty(0)


def check_imatrix(found: Mapping[str, torch.Tensor], specs: Mapping[str, TensorSpec],
                  where: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """(the importances of the layers in `specs`, notices). where: the file, for messages.

    specs: of the weights to be quantized in formats that weigh. Layers that it does not name are told and go without. Raises
    SourceError when it names none, or has another number of columns for one, or a value that is negative, infinite or NaN.
    """
    taken = {key: found[key] for key in specs if key in found}
    if not taken:
        raise SourceError(f"{where}: expected importances of {_some(list(specs))}, found {_some(list(found))}; "
                          "choose one made with this model")
    for key, values in taken.items():
        count, columns = values.numel(), specs[key].shape[1]
        if count != columns:
            raise SourceError(f"{where}: {key}: expected {columns} importances, found {count}; choose one made with this model")
        if not (torch.isfinite(values).all() and values.min() >= 0):
            raise SourceError(f"{where}: {key}: expected finite importances of at least 0, found {_bad(values)}; make it again")
    missing = [key for key in specs if key not in found]
    extra = [key for key in found if key not in specs]
    return taken, [f"{where}: {text}" for is_so, text in (
        (missing, f"{len(missing)} of {len(specs)} layers are not in it (a calibration leaves out those where weighing does not "
                  f"help) and are not weighed: {_some(missing)}"),
        (extra, f"{len(extra)} of its layers are not weighed here: {_some(extra)}")) if is_so]


def _bad(values: torch.Tensor) -> str:
    return f"{values[~(torch.isfinite(values) & (values >= 0))][0].item():g}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
