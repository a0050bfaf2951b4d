"""Headers of real Wan 2.2 models, and GGUF files of them whose tensor data is a hole."""
import os
import re
from math import prod
from pathlib import Path

import gguf
import numpy
import pytest
import torch
from gguf.quants import quant_shape_to_byte_shape
from wan22_master.engine.specs import TensorSpec
from wan22_master.engine.synthetic import Sizes, model_shapes


def model(dim: int = 5120, ffn: int = 13824, blocks: int = 40) -> dict[str, TensorSpec]:
    return {key: TensorSpec(shape, torch.bfloat16) for key, shape in model_shapes(Sizes(dim=dim, ffn=ffn, blocks=blocks)).items()}


def small(blocks: int = 8) -> dict[str, TensorSpec]:
    return model(dim=256, ffn=512, blocks=blocks)


def q5_k_m(key: str) -> str:
    """The type of a tensor in a Q5_K_M of city96's tools: v and ffn.2 one step up, what is outside the blocks in F16."""
    if not re.search(r"\.(q|k|v|o|0|2|1|head)\.weight$", key):
        return "F32"
    if not key.startswith("blocks."):
        return "F16"
    return "Q6_K" if re.search(r"\.(v|ffn\.2)\.weight$", key) else "Q5_K"


def write_gguf(path: Path, shapes: dict[str, tuple[int, ...]], types: dict[str, str], arch: str = "wan", prefix: str = "") -> Path:
    """A GGUF file by the format's own writer, with a hole for the data."""
    if os.name == "nt":
        pytest.skip("truncate makes no hole there")
    writer, size = gguf.GGUFWriter(str(path), arch), 0
    for key, shape in shapes.items():
        kind = gguf.GGMLQuantizationType[types[key]]
        stored = {"F32": numpy.float32, "F16": numpy.float16}.get(types[key])
        nbytes = prod(shape) * stored().itemsize if stored else prod(quant_shape_to_byte_shape(shape, kind))
        writer.add_tensor_info(prefix + key, shape, numpy.dtype(stored or numpy.float32), nbytes, raw_dtype=kind)
        size += -(-nbytes // 32) * 32  # the default alignment of a GGUF file
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with open(path, "r+b") as file:
        file.truncate(-(-os.path.getsize(path) // 32) * 32 + size)
    return path
