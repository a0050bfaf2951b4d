"""Three presets for each of four kinds of cards: which format each part of the model gets, and why.

Numbers: weight error as ‖Ŵ−W‖/‖W‖ on normal weights at equal shape, comfy-kitchen 0.2.31 or our own search; bits per weight.

    nvfp4 0.082, 4.5 bits    asym_w4a8_int8 0.071, 4.5    float8_e4m3fn 0.0265, 8    mxfp8 0.0265, 8.25    int8 ConvRot 0.0088, 8

Which layers are more precise. The first and the last three blocks (NVIDIA's ModelOpt keeps the same for Wan 2.2): an error in the
first is the input of all others, one of the last is in the picture. v of both attentions and ffn.2: they write into the residual
stream with no softmax or gate after them, and llama.cpp's K mixes give the same ones more bits (Q6_K in Q5_K_M).
cross_attn.k and .v see the 512 tokens of the text, not the video's 30,000: W4A16 there costs next to nothing.
GB: the linears of the blocks of a 14B expert, which are 28.1 in 16 bit.

blackwell (RTX 50) computes nvfp4, mxfp8, fp8 and int8.
    speed     8.9 GB: nvfp4; mxfp8 in the edge blocks. Twice the rate of 8 bit in nearly all products.
    balanced  10.9 GB: the same, and v and ffn.2 in mxfp8. mxfp8 and not fp8: its input scales are always dynamic, one per 32
              values, while fp8 without an input_scale takes 1.0 (quant_ops.py), so that it needs a calibration. Not int8: its
              inputs are rotated first.
    quality   16.2 GB: int8 ConvRot, a third of mxfp8's error at a smaller size; edge blocks in 16 bit.
ada (RTX 40) computes fp8 and int8.
    speed     14.1 GB: fp8, whose input needs one division and no rotation; int8, scaled per token, where an input scale of 1.0 is
              most likely to hurt: edge blocks, v, ffn.2 (the inputs with the longest tails).
    balanced  14.1 GB: int8 everywhere: no more bytes than fp8, a third of its error, no calibration.
    quality   16.2 GB: the same with edge blocks in 16 bit.
ampere (RTX 20 and 30) computes int8 and int4; convrot_w4a4 is left out for its error of 0.159.
    speed     10.7 GB: w4a8, which is multiplied in int8 and half as large: less to stream into a card of 8 to 12 GB; int8 in
              edge blocks, v and ffn.2.
    balanced, quality  as ada.
any (CPU, AMD, Mac, all else) need not compute any of them; int8 loads everywhere (Macs have no fp8 type), and has least error.
    speed     14.1 GB: int8 everywhere.    balanced  16.2 GB: edge blocks in 16 bit.    quality  20.3 GB: v and ffn.2 as well.
              Not int8 with products in 16 bit: ComfyUI 0.33 multiplies INT formats in INT8 whatever a file says (cards.py).
"""
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import RecipeError
from ..specs import TensorSpec
from .moves import Choices, edge_layers, fitted
from .plan import KEEP, Choice, block_linears

EDGE_BLOCKS = 3
PRECISE = (".v", ".v_img", ".ffn.2")
TEXT = (".cross_attn.k", ".cross_attn.v")
WHY = {
    "nvfp4": "4.5 bits and the fastest products of an RTX 50", "mxfp8": "8 bits, input scales always dynamic",
    "float8_e4m3fn": "8 bits, products without a rotation of the input",
    "int8_tensorwise": "a third of fp8's error at 8 bits, input scales always dynamic",
    "asym_w4a8_int8": "4.5 bits, multiplied in int8", KEEP: "16 bit, at no error",
}


@dataclass(frozen=True)
class Preset:
    """Formats of the edge blocks, of v and ffn.2 elsewhere, and of the rest."""

    edges: str
    precise: str
    rest: str


INT8 = "int8_tensorwise"
PRESETS = {
    "blackwell": {"speed": Preset("mxfp8", "nvfp4", "nvfp4"), "balanced": Preset("mxfp8", "mxfp8", "nvfp4"),
                  "quality": Preset(KEEP, INT8, INT8)},
    "ada": {"speed": Preset(INT8, INT8, "float8_e4m3fn"), "balanced": Preset(INT8, INT8, INT8),
            "quality": Preset(KEEP, INT8, INT8)},
    "ampere": {"speed": Preset(INT8, INT8, "asym_w4a8_int8"), "balanced": Preset(INT8, INT8, INT8),
               "quality": Preset(KEEP, INT8, INT8)},
    "any": {"speed": Preset(INT8, INT8, INT8), "balanced": Preset(KEEP, INT8, INT8),
            "quality": Preset(KEEP, KEEP, INT8)},
}
HARDWARE = tuple(PRESETS)
NAMES = ("speed", "balanced", "quality")


def choices(model: Mapping[str, TensorSpec], name: str, hardware: str) -> tuple[Choices, list[str]]:
    """The choice of each block linear of one expert, and notices of what a format cannot hold. Raises RecipeError."""
    if hardware not in PRESETS or name not in NAMES:
        raise RecipeError(f"preset: expected {' or '.join(NAMES)} for {' or '.join(HARDWARE)}, found {name!r} for {hardware!r}, "
                          f"choose one of them")
    preset, linears = PRESETS[hardware][name], block_linears(model)
    edges = edge_layers(linears, EDGE_BLOCKS)
    found = {layer: _choice(layer, preset, is_edge=layer in edges) for layer in linears}
    return fitted(found, linears)


def _choice(layer: str, preset: Preset, *, is_edge: bool) -> Choice:
    if is_edge:
        name, place = preset.edges, f"one of the first or last {EDGE_BLOCKS} blocks"
    elif layer.endswith(PRECISE):
        name, place = preset.precise, "sensitive (v or ffn.2)"
    else:
        name, place = preset.rest, "less sensitive (q, k, o or ffn.0)"
    reason = f"{place}: {WHY[name]}"
    if name == "nvfp4" and layer.endswith(TEXT):
        return Choice(name, full_precision=True, reason=f"{reason}; few text tokens, so products in 16 bit cost next to nothing")
    return Choice(name, reason=reason)
