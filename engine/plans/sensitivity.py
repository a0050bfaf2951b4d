"""Layers that a measurement calls sensitive, and the two switches that lift the feed-forward layers.

The JSON is that of jorismak/convert_nvfp4's analyze_input_precision_sensitivity.py: {"layers": [{"layer", "rel_rmse_mean", ...}]}.
rel_rmse_mean > threshold: the layer is kept, or multiplies in 16 bit. Its published files hold NaN for most layers, because the
tool ran a model with uninitialized weights; NaN is no evidence for or against a layer, and is counted. It measures how well random
inputs survive NVFP4, nothing of the layer's weights or output: a hint, not a proof.
"""
import math
from collections.abc import Mapping

from ...quant.formats import BLOCK_TYPES
from ..errors import RecipeError
from ..recipes.checks import wrong
from ..specs import TensorSpec
from .moves import Choices, in_full_precision, moved
from .names import bare, sort_out
from .plan import KEEP, Choice

ACTIONS = (KEEP, "full_precision")
# The 8-bit format that the cards of a narrower one compute natively. The original knew the first pair (--min-ffn-fp8).
EIGHT_BIT = {"nvfp4": "float8_e4m3fn", "convrot_w4a4": "int8_tensorwise", "asym_w4a8_int8": "int8_tensorwise",
             **{name: "Q8_0" for name in BLOCK_TYPES if name != "Q8_0"}}


def flagged(found: Mapping[str, object], threshold: float, model: Mapping[str, TensorSpec],
            where: str) -> tuple[dict[str, float], list[str]]:
    """Block linear -> rel_rmse_mean, of those over the threshold, and notices. found: the parsed JSON. Raises RecipeError."""
    rows = found.get("layers")
    if not isinstance(rows, list):
        raise RecipeError(f"{where}: expected a list named layers, found {type(rows).__name__}, choose a sensitivity JSON")
    values: dict[str, float] = {}
    for number, row in enumerate(rows):
        name, value = (row.get("layer"), row.get("rel_rmse_mean")) if isinstance(row, dict) else (None, None)
        if not isinstance(name, str) or isinstance(value, bool) or not isinstance(value, int | float | None):
            raise wrong(f"{where}: layers[{number}]", "an object with layer and rel_rmse_mean", row, "choose a sensitivity JSON")
        values[bare(name).removesuffix(".weight")] = math.nan if value is None else float(value)
    blind = sum(not math.isfinite(value) for value in values.values())
    over = {name: value for name, value in values.items() if math.isfinite(value) and value > threshold}
    layers, notices = sort_out(over, model, where)
    if blind:
        notices.append(f"{where}: {blind} of {len(values)} layers have no finite rel_rmse_mean, which is no evidence about them")
    return {layer: over.get(layer, threshold) for layer in layers}, notices


def apply(choices: Mapping[str, Choice], over: Mapping[str, float], threshold: float, action: str) -> Choices:
    """`choices` with `action` for the layers in `over`. action: "keep" or "full_precision"."""
    def changed(layer: str, choice: Choice) -> Choice:
        why = f"rel_rmse {over[layer]:.3g} over {threshold:g}"
        return moved(choice, KEEP, why) if action == KEEP else in_full_precision(choice, why)
    return {layer: changed(layer, choice) if layer in over else choice for layer, choice in choices.items()}


def min_ffn_fp8(choices: Mapping[str, Choice]) -> Choices:
    """No feed-forward layer under 8 bit: --min-ffn-fp8, also where no fp8 was asked for."""
    return {layer: moved(choice, EIGHT_BIT[choice.format], "ffn at least 8 bits")
            if layer.endswith((".ffn.0", ".ffn.2")) and choice.format in EIGHT_BIT else choice for layer, choice in choices.items()}


def min_ffn2_16bit(choices: Mapping[str, Choice]) -> Choices:
    """ffn.2 unquantized: --min-ffn2-fp16."""
    return {layer: moved(choice, KEEP, "ffn.2 in 16 bit") if layer.endswith(".ffn.2") else choice
            for layer, choice in choices.items()}
