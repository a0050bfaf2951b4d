"""Which tensor of a GGUF file gets which ggml type: the mixes that people ask for by name, and what is never quantized.

A mix is a default type and two rules: v of the attentions and ffn.2 write into the residual stream with no softmax or gate after
them, so they get more bits. The rules are city96's for image models (ComfyUI-GGUF, tools/lcpp.patch, img_tensor_get_type), by name:
    .v.weight        self-attention and cross-attention alike, counted together in the order of the file; v_img is none of them
    .ffn.2.weight    every one
Here they meet the linears of the blocks alone. The original quantizes and counts what else is a matrix outside the embeddings, as
the audio injector of S2V or Animate's face adapter: those stay in 16 bit here. It refuses IQ4_NL and IQ4_XS; here no rule moves
them.

What is not quantized, as city96's convert.py has it, with two differences (`kept_type`).
"""
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from .specs import TensorSpec

VALUE, DOWN = ".v.weight", ".ffn.2.weight"
PLAIN = ("F32", "F16", "BF16")                     # types without blocks
SUPER = frozenset({"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"})
# Elements of a block (ggml-common.h, QK_K and QK8_0).
SUPER_BLOCK, BLOCK = 256, 32
# Where the columns are no multiple of 256: llama.cpp, src/llama-quant.cpp. Of 2026 it takes Q4_0 for Q2_K and Q3_K, before that
# IQ4_NL: as many bytes, less error.
SMALLER_BLOCKS = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
FEW = 1024                                         # elements; convert.py, QUANTIZATION_THRESHOLD
# Matrices that ComfyUI uses as they lie in the file, past ComfyUI-GGUF's layers, which alone know BF16 and blocks:
# EqualLinear and Direction of comfy/ldm/wan/model_animate.py are bare parameters, and S2V casts the weight of an embedding itself.
BARE = re.compile(r"motion_encoder\..*|trainable_cond_mask\.weight")


@dataclass(frozen=True)
class Mix:
    """file_type: llama.cpp's number (llama.h, enum llama_ftype); default: type of what no rule names; value, down: of `.v.weight`
    and `.ffn.2.weight`, None: the default; first: the type of that many v before `value` begins."""

    file_type: int
    default: str
    value: str | None = None
    down: str | None = None
    first: tuple[int, str] | None = None

    @property
    def is_plain(self) -> bool:
        """True when nothing is quantized."""
        return self.default in PLAIN


MIXES: Mapping[str, Mix] = {                       # in the order that menus show
    "Q8_0": Mix(7, "Q8_0"),
    "Q6_K": Mix(18, "Q6_K"),
    "Q5_K_M": Mix(17, "Q5_K", "Q6_K", "Q6_K"),
    "Q5_K_S": Mix(16, "Q5_K"),
    "Q4_K_M": Mix(15, "Q4_K", "Q6_K", "Q6_K"),
    "Q4_K_S": Mix(14, "Q4_K", None, "Q5_K", (4, "Q5_K")),
    "Q3_K_L": Mix(13, "Q3_K", "Q5_K", "Q5_K"),
    "Q3_K_M": Mix(12, "Q3_K", "Q4_K", "Q4_K", (2, "Q5_K")),
    "Q3_K_S": Mix(11, "Q3_K"),
    "Q2_K": Mix(10, "Q2_K", "Q3_K"),
    "Q5_1": Mix(9, "Q5_1"),
    "Q5_0": Mix(8, "Q5_0", None, "Q5_1"),
    "Q4_1": Mix(3, "Q4_1"),
    "Q4_0": Mix(2, "Q4_0", None, "Q4_1"),
    "IQ4_NL": Mix(25, "IQ4_NL"),
    "IQ4_XS": Mix(30, "IQ4_XS"),
    "BF16": Mix(32, "BF16"),
    "F16": Mix(1, "F16"),
    "F32": Mix(0, "F32"),
}


def file_type(name: str) -> int:
    """`general.file_type` of a mix, or of a type for every linear: that of the mix without rules. Raises KeyError for another
    name."""
    return MIXES[name if name in MIXES else f"{name}_S"].file_type


def mix_types(name: str, keys: Iterable[str]) -> dict[str, str]:
    """Key -> ggml type by the rules of a mix; what a row cannot hold is `fallback`'s matter.

    keys: of the linears of the blocks, with `.weight`, in the order of the file. Raises KeyError for an unknown mix.
    """
    mix, values, found = MIXES[name], 0, {}
    early, early_type = mix.first or (0, mix.default)
    for key in keys:
        found[key] = mix.default
        if VALUE in key:
            found[key] = early_type if values < early else mix.value or mix.default
            values += 1
        elif DOWN in key:
            found[key] = mix.down or mix.default
    return found


def fallback(name: str, columns: int) -> str:
    """The type that a matrix of this many columns gets where `name` is asked for: itself, else the one with blocks of 32 that
    llama.cpp takes for it, else F16."""
    if name in PLAIN:
        return name
    if name in SUPER and columns % SUPER_BLOCK:
        name = SMALLER_BLOCKS[name]
    return name if columns % (SUPER_BLOCK if name in SUPER else BLOCK) == 0 else "F16"


def kept_type(key: str, spec: TensorSpec, wanted: str | None = None) -> str:
    """F32, F16 or BF16: the type of a tensor that is not quantized.

    wanted: F32 for everything, F16 or BF16 for the weights of linears; None: BF16 where the source has it or is itself quantized,
    else F16, also where it is F32, as convert.py has it: 11 bits of a number up to 65504 instead of 24.
    F32, whatever the source: one dimension, up to 1024 elements, modulation; and unlike convert.py, which has F16 there or nothing
    at all, everything of three dimensions or more (patch_embedding), without loss, and what ComfyUI hands to no linear layer.
    """
    is_linear = len(spec.shape) == 2 and spec.numel > FEW and key.endswith(".weight") and not BARE.fullmatch(key)
    if wanted == "F32" or not is_linear or ".modulation" in key:
        return "F32"
    return wanted or ("F16" if spec.dtype in (torch.float16, torch.float32, torch.float64) else "BF16")
