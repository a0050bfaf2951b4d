"""The summary of a calibration's log, in the schema of convert_nvfp4's analyze_input_scale_log.py.

    {"format": "nvfp4", "mode": "dynamic", "percentiles": [99.0, 99.9], "layers": [{"layer": "blocks.10.cross_attn.k", "count": 640,
      "scale_max": 0.000491, "scale_p99_9": 0.000491, "amax_max": 1.319336, "amax_p99_9": 1.319336, ...}]}
Of every layer the largest and the percentiles of its input's amax over all calls. The `scale_*` columns are amax / 2688, of FP8
layers too, in two or three digits: `amax_*` is read, and scale * 2688 only where it is missing.
"""
import math
import os
from collections.abc import Collection, Mapping

from .. import strict_json
from ..errors import RecipeError
from ..system import naming
from .input_scales import INPUT_AMAX, MARGIN, InputScales, given

LOGGED = INPUT_AMAX["nvfp4"]                       # what the log divides by, whatever the layer's format
LARGEST = 20_000_000                               # bytes; the summary of a 14B expert has 212 thousand
LONGEST_NAME = 200                                 # of a layer; a real one has 30 letters
NAME = "the summary"


def read_summary(path: str | os.PathLike) -> dict:
    """The JSON of a summary, unchecked. Raises MergeError when it cannot be read, RecipeError when it is no JSON object."""
    path = os.fspath(path)
    with naming(path, "read", "check the path and the rights of the file"), open(path, "rb") as file:
        body = file.read(LARGEST + 1)
    if len(body) > LARGEST:
        raise RecipeError(f"{path}: expected a summary of at most {LARGEST} bytes, found more; choose the summary, not the log")
    try:
        return strict_json.parse(body)
    except ValueError as cause:
        raise RecipeError(f"{path}: expected the JSON of a scales summary, found: {str(cause)[:99]}; choose another") from cause


def from_summary(found: Mapping, layers: Collection[str], *, percentile: float | None = None, multiplier: float = MARGIN,
                 share: bool = True) -> InputScales:
    """amax of every layer that a summary names, times `multiplier`.

    found: the summary; layers: of the model to save, as `blocks.3.ffn.0`; percentile: one of those in it, None: the maximum;
    share: as in `given`. Raises RecipeError: another schema, a percentile that is not there, a value that is none, a foreign model.
    """
    if isinstance(multiplier, bool) or not 0.0 < multiplier < math.inf:
        raise RecipeError(f"input scales: multiplier: expected a finite number above 0, found {multiplier}; {MARGIN:g} is usual")
    column = "max" if percentile is None else column_of(percentile)
    amax: dict[str, float] = {}
    idle, coarse = [], 0
    for layer, row in rows_of(found).items():
        value, is_coarse = _value(row, f"{NAME}: {layer}", column, found.get("percentiles"))
        amax[layer] = value * multiplier
        coarse += is_coarse
        if not value:
            idle.append(layer)
    notices = [f"{coarse} layers of {NAME} lack amax_{column}: scale_{column} serves, in two or three digits"] if coarse else []
    if idle:
        notices.append(f"{len(idle)} layers of {NAME} had inputs of zero only and get no scale, as {idle[0]}")
    source = f"{NAME} ({'largest' if percentile is None else f'percentile {percentile:g}'}, times {multiplier:g})"
    return given({layer: value for layer, value in amax.items() if value}, layers, source, share=share, notices=notices)


def column_of(percentile: float) -> str:
    """End of the columns of a percentile, as p99_9: what a summary is written and read by."""
    return f"p{percentile:.10g}".replace(".", "_")


def rows_of(found: Mapping) -> dict[str, dict]:
    """Layer -> its row. Raises RecipeError for another schema, a row without a layer, and a layer twice."""
    rows, named = found.get("layers"), {}
    if not isinstance(rows, list) or not rows:
        raise RecipeError(f"{NAME}: layers: expected a list of rows, found {str(rows)[:80]}; choose a scales summary")
    for number, row in enumerate(rows):
        named[_layer(row, number, named)] = row
    return named


def _layer(row: object, number: int, before: Collection[str]) -> str:
    name = row.get("layer") if isinstance(row, dict) else None
    if not isinstance(name, str) or len(name) > LONGEST_NAME:
        raise RecipeError(f"{NAME}: layers[{number}]: expected a row with its layer, found {str(row)[:60]}; choose another file")
    if name in before:
        raise RecipeError(f"{NAME}: {name}: expected one row, found two; make the summary anew, from one log")
    return name


def _value(row: Mapping, where: str, column: str, percentiles: object) -> tuple[float, bool]:
    """The amax in a column, and whether it had to be made of a scale."""
    name = next((name for name in (f"amax_{column}", f"scale_{column}") if name in row), None)
    if name is None:
        known = ", ".join(key.removeprefix("amax_p").replace("_", ".") for key in row if key.startswith("amax_p"))
        raise RecipeError(f"{where}: expected amax_{column} or scale_{column}, found percentiles {known or percentiles or 'none'}; "
                          "choose one of them, or the largest")
    value = row[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < math.inf:  # false for NaN
        raise RecipeError(f"{where}: {name}: expected a finite number, 0 or above, found {str(value)[:40]}; make the summary anew")
    is_coarse = name.startswith("scale")
    return float(value) * (LOGGED if is_coarse else 1.0), is_coarse
