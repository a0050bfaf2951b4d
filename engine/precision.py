"""Which tensor gets which format: the one place that knows what of a Wan DiT may be quantized.

Only the linears of the blocks are: 98 % of the weights, and the only tensors that ComfyUI loads quantized without harm. A quantized
patch_embedding loads with its codes unscaled, and detection reads the raw shapes of head, modulation and blocks.0.ffn.0
(comfy/model_detection.py). Embeddings, time, head, norms and modulation are small and stay as wide as they came.
"""
import re

import torch

from ..quant.formats import FORMATS, QUANTIZED
from ..quant.plain import KEPT
from .specs import TensorSpec

BLOCK_LINEAR = re.compile(r"(?:vace_)?blocks\.(\d+)\.(self_attn|cross_attn|ffn)\.(?:q|k|v|o|k_img|v_img|0|2)\.weight")
KINDS = ("self_attn", "cross_attn", "ffn")
# A source in one of these grids is already lossy; what stays unquantized comes out in 16 bit.
NARROW = {torch.float8_e4m3fn: torch.bfloat16, torch.float8_e5m2: torch.bfloat16, torch.float64: torch.float32}


def is_block_linear(key: str, spec: TensorSpec) -> bool:
    """True for the weights that a quantized format quantizes, and that the stability meter divides by."""
    return len(spec.shape) == 2 and BLOCK_LINEAR.fullmatch(key) is not None


def block_of(key: str) -> tuple[int, str] | None:
    """Block number and kind of a block linear's key, of the main blocks only; None for any other key."""
    found = BLOCK_LINEAR.fullmatch(key)
    return (int(found[1]), found[2]) if found and not key.startswith("vace_") else None


def kept_dtype(spec: TensorSpec) -> torch.dtype:
    """Dtype of a tensor that stays unquantized: its own."""
    return NARROW.get(spec.dtype, spec.dtype)


def choose(key: str, spec: TensorSpec, name: str):
    """The format module for one tensor of an output in format `name`.

    A quantized format takes the block linears. A plain one takes every 2-D weight; what ComfyUI computes in 32 bit whatever it is
    stored in (patch_embedding, modulation, norms, biases) keeps its dtype, except in fp32, which takes all.
    """
    quantized = name in QUANTIZED
    if is_block_linear(key, spec) if quantized else (name == "fp32" or (len(spec.shape) == 2 and key.endswith(".weight"))):
        return FORMATS[name]
    return KEPT[kept_dtype(spec)]


def processing_order(specs: dict[str, TensorSpec]) -> list[str]:
    """Keys in the order they are read, merged and written.

    Kept tensors first, wide dtypes before narrow ones, then the block linears, each group in file order: so every offset is a
    multiple of its dtype in each format, with no hole between tensors (safetensors allows none).
    """
    place = {key: number for number, key in enumerate(specs)}
    return sorted(specs, key=lambda key: (is_block_linear(key, specs[key]), -kept_dtype(specs[key]).itemsize, place[key]))
