"""What the files of test_formats.py are: the model they are made of, and one output of a recipe for each; shared with its probe.

The model, its prompt and its sampling are those of a table that was measured with comfy-kitchen's own quantizers in a real ComfyUI
0.33 on a CPU: a T2V model of width 256 with two blocks, normal weights of std 1 / sqrt(fan in), 20 block linears quantized, 4 Euler
steps; each figure is the L2 difference of the latent to that of the BF16 file, over the norm of the latter. A row's figure is
reproduced to its last digit but for nvfp4 (0.0483 from float32 weights, 0.0490 from BF16 ones) and ConvRot (0.0035, 0.0036).
"""
import hashlib
import math

import torch
from wan22_master.engine.synthetic import Sizes, model_shapes

TINY = Sizes(dim=256, ffn=512, blocks=2)           # ConvRot turns groups of 256
LAYERS = [key.removesuffix(".weight") for key, shape in model_shapes(TINY).items()
          if key.startswith("blocks.") and key.endswith(".weight") and len(shape) == 2]
TABLE = {"float8_e4m3fn": 0.0122, "float8_e5m2": 0.0260, "mxfp8": 0.0122, "nvfp4": 0.0490, "int8 tensor": 0.0052,
         "int8 row": 0.0038, "int8 convrot": 0.0036, "convrot_w4a4": 0.0674, "asym_w4a8_int8": 0.0321}


def weights(seed: int) -> dict[str, torch.Tensor]:
    """The table's model, bf16; a tensor depends on seed, key and shape alone."""
    return {key: _draw(key, shape, seed).bfloat16() for key, shape in model_shapes(TINY).items()}


def _draw(key: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    digest = hashlib.sha256(f"{seed}|{key}".encode()).digest()
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(int.from_bytes(digest[:7], "big")))
    if "norm" in key and key.endswith(".weight"):
        return 1 + 0.1 * drawn
    if key.endswith("modulation"):
        return drawn / math.sqrt(shape[-1])
    return drawn / math.sqrt(math.prod(shape[1:])) if key.endswith(".weight") else 0.02 * drawn


def _named(*endings: str, block: int | None = None) -> list[str]:
    return [layer for layer in LAYERS if layer.endswith(endings) and (block is None or layer.startswith(f"blocks.{block}."))]


def _of(role: str, **fields: object) -> dict:
    return {name: {role: value} for name, value in fields.items()}


FP8, KEPT, WIDE = _named("ffn.0"), _named("cross_attn.q", block=0), _named("cross_attn.o", "cross_attn.k")
# Largest activation of a layer; two of three NVFP4 layers and both FP8 layers have one, each its own.
AMAX = {layer: 3.0 + 0.37 * number for number, layer in enumerate(LAYERS) if layer not in KEPT and (number % 3 or layer in FP8)}
SEVEN = ["float8_e4m3fn", "float8_e5m2", "mxfp8", "nvfp4", "int8_tensorwise", "convrot_w4a4", "asym_w4a8_int8", "keep"]
MIX = {"layers": dict.fromkeys(FP8, "float8_e4m3fn") | dict.fromkeys(KEPT, "keep"), "full_precision": WIDE, "input_amax": AMAX}
MIXES = {
    "mix": {"format": "nvfp4", "plan": "mix", **_of("model", **MIX)},
    "mix fp16": {"format": "nvfp4", "plan": "mix", "kept_dtype": "fp16", **_of("model", layers=MIX["layers"])},
    "int8 w4a8": {"format": "int8_tensorwise", "plan": "mix",
                  **_of("model", layers=dict.fromkeys(_named("ffn.0", "ffn.2", "self_attn.v"), "asym_w4a8_int8"))},
    "seven": {"format": "nvfp4", "plan": "seven",
              **_of("model", layers={layer: SEVEN[number % 8] for number, layer in enumerate(LAYERS)}, input_amax=AMAX)},
    "mix 16-bit": {"format": "nvfp4", "plan": "mix", "activations": "16-bit", **_of("model", **MIX)},
    "fp8 16-bit": {"format": "float8_e4m3fn", "activations": "16-bit"},
    "fp8 scaled": {"format": "float8_e4m3fn", **_of("model", input_amax=dict.fromkeys(LAYERS, 8.0))},
}
ALONE = {
    **{name: {"format": name} for name in ("bf16", "fp16", "fp32", "float8_e4m3fn", "float8_e5m2", "mxfp8")},
    **{f"{name} {search}": {"format": name, "search": search} for name in ("nvfp4", "convrot_w4a4", "asym_w4a8_int8")
       for search in ("fast", "balanced", "best")},
    **{f"int8 {scaling}": {"format": "int8_tensorwise", "int8_scaling": scaling} for scaling in ("tensor", "row", "convrot")},
}
CASES = ALONE | MIXES


def outputs() -> list[dict]:
    """Of a recipe for a lone model: every case, told apart by its number as the suffix."""
    return [{**output, "suffix": str(number)} for number, output in enumerate(CASES.values())]
