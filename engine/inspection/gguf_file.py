"""What a GGUF file is, told from its header: architecture, types, what ComfyUI-GGUF makes of it."""
import os
from collections import Counter

import numpy as np

from ..bases.gguf_header import MAGIC, open_gguf
from ..bases.names import PREFIXES
from ..bases.roles import role_of
from ..errors import HeaderError
from . import openers
from .contract import Problem

UNQUANTIZED = {"F32", "F16", "BF16", "F64"}
# ComfyUI-GGUF, ops.py: GGML operations cover Linear, Conv2d, Embedding, LayerNorm, GroupNorm; the rest has to be wide.
WIDE_ONLY = ("patch_embedding.weight", "modulation")
ARCHITECTURE = "general.architecture"


def is_gguf(path: str) -> bool:
    """True for a file that begins as a GGUF does."""
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False                               # the reader that follows says why


def inspect_gguf(path: str) -> dict:
    """As `facts.inspect`, of a GGUF file. Raises HeaderError when its header is damaged."""
    header = open_gguf(path)
    metadata = {name: _value(found) for name, found in header.metadata.items()}
    tensors = {tensor.name: tensor for tensor in header.tensors}
    end = max((tensor.data_offset + tensor.n_bytes for tensor in header.tensors), default=0)
    if end > os.path.getsize(path):
        raise HeaderError(f"{path}: truncated: {end - os.path.getsize(path)} bytes missing, download it again")
    layers = {name.removesuffix(".weight"): _type(tensor) for name, tensor in tensors.items()
              if name.endswith(".weight") and _type(tensor) not in UNQUANTIZED}
    architecture, problems = metadata.get(ARCHITECTURE), _problems(tensors)
    role = role_of(path, {name: value for name, value in metadata.items() if isinstance(value, str)})
    dtypes = _dtypes(tensors.values())
    return {
        "name": os.path.basename(path), "bytes": os.path.getsize(path), "tensors": len(tensors), "files": 1,
        "what": f"GGUF of architecture {architecture}, {_blocks(tensors)} blocks", "role": role.role, "evidence": role.evidence,
        "dtypes": dtypes, "quantized": dict(Counter(layers.values()).most_common()), "kept": {}, "input_scales": {}, "lora": None,
        "layers": {layer: {"format": name, "full_precision": True, "input_scale": None} for layer, name in layers.items()},
        "problems": problems, "opens_in": openers.of_gguf(architecture, dtypes), "metadata": metadata,
    }


def _type(tensor) -> str:
    return tensor.tensor_type.name


def _value(found: object) -> object:
    """Ready for JSON."""
    return found.item() if isinstance(found, np.generic) else found


def _dtypes(tensors) -> dict[str, dict[str, int]]:
    count, nbytes = Counter(), Counter()
    for tensor in tensors:
        count[_type(tensor)] += 1
        nbytes[_type(tensor)] += int(tensor.n_bytes)
    return {name: {"tensors": count[name], "bytes": total} for name, total in nbytes.most_common()}


def _problems(tensors: dict) -> list[Problem]:
    """What ComfyUI-GGUF cannot use; the names are those of the model, with or without a checkpoint's prefix."""
    found = []
    for name, tensor in tensors.items():
        if name.endswith(WIDE_ONLY) and _type(tensor) not in ("F32", "F16"):
            found.append(Problem(name, f"expected F32 or F16, all that ComfyUI-GGUF can use here, found {_type(tensor)}", "error"))
    return found


def _blocks(tensors: dict) -> int:
    bare = (next(name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix)) for name in tensors)
    return len({name.split(".")[1] for name in bare if name.startswith("blocks.")})
