"""The largest input of every layer, from a person's choice: a calibration's summary, another file's scales, one number.

    input_scale = float32(amax / INPUT_AMAX)     2688 = 448 * 6 for nvfp4, 448 and 57344 for FP8 (ComfyUI comfy/quant_ops.py)

amax is of the layer's input, margin included. Too small a scale clips the largest inputs, which costs much (half of amax: 0.11 to
0.16 in place of 0.095 with nvfp4); too large a one is free up to 256 times amax for nvfp4, whose block scales take it up, and 64
times for FP8, whose exponent does. So the default is the largest input ever seen, twice. Which layers see the same input follows
from the model: q, k and v of a self-attention, and k and v of every cross-attention, which all see the one text.
"""
import math
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ...quant.formats import FORMATS
from ..bases import stated as reader
from ..bases.shards import find_files, read_headers
from ..errors import RecipeError, SourceError

MARGIN = 2.0
INPUT_AMAX = {name: FORMATS[name].INPUT_AMAX for name in ("nvfp4", "float8_e4m3fn", "float8_e5m2")}
ENDING = ".input_scale"
BLOCK = re.compile(r"((?:vace_)?blocks\.\d+)\.(.+)")
# A summary has these too, as the original measures every linear; precision.py tells why they are never quantized.
OUTSIDE = re.compile(r"(?:head|text_embedding|time_embedding|time_projection|img_emb|patch_embedding)(?:\..+)?")
SHOWN = 3                                          # names in a notice


@dataclass(frozen=True)
class InputScales:
    """amax: layer -> largest input, margin included, for the layers that have one; notices: what the user should know."""

    amax: dict[str, float]
    notices: tuple[str, ...] = ()


def constant(amax: float, layers: Collection[str]) -> InputScales:
    """The same for every layer. Raises RecipeError unless `amax` is a finite number above 0."""
    return InputScales(dict.fromkeys(layers, _positive(amax, "input scales: amax")))


def from_file(path: str | os.PathLike, layers: Collection[str], *, share: bool = True) -> InputScales:
    """The `input_scale` tensors of a quantized model: value * INPUT_AMAX of that file's own format for the layer.

    layers: of the model to save, as `blocks.3.ffn.0`. share: as in `given`. Raises HeaderError; SourceError when no layer has
    one, one is no number above 0, or its layer does not name its format.
    """
    path = os.fspath(path)
    headers = read_headers(find_files(path))
    with reader.fetching(headers) as fetch:
        stated = reader.read(headers, fetch)
        named = [key.removesuffix(ENDING) for key in stated.specs if key.endswith(ENDING)]
        values = {layer: stated.number(layer + ENDING, fetch) for layer in named}
    amax, unread = {}, Counter()
    for layer, value in values.items():
        form = stated.format_of(layer) if layer in stated.layers else None
        where = f"{path}: {layer}{ENDING}"
        if form is None:
            raise SourceError(f"{where}: expected its layer to name its format, found none; choose a file that ComfyUI loads")
        if value is None or not 0.0 < value < math.inf:
            shown = "another tensor" if value is None else value
            raise SourceError(f"{where}: expected one finite number above 0, found {shown}; choose another file")
        if form in INPUT_AMAX:
            amax[layer] = value * INPUT_AMAX[form]
        else:
            unread[form] += 1
    if not amax:
        raise SourceError(f"{path}: expected layers with {ENDING[1:]} in {', '.join(INPUT_AMAX)}, found none; choose another file, "
                          "or another source of input scales")
    notices = [f"{count} input scales of {form} are left out: ComfyUI reads none there" for form, count in unread.items()]
    return given(amax, layers, os.path.basename(path), share=share, notices=notices)


def given(amax: Mapping[str, float], layers: Collection[str], source: str, *, share: bool = True,
          notices: Collection[str] = ()) -> InputScales:
    """What a source says, laid on the layers of a model.

    share: a layer without a value gets that of a layer with the same input, the largest of them. source: its name, for notices.
    Raises RecipeError when not one layer of the source is in the model.
    """
    wanted = list(dict.fromkeys(layers))
    found = {layer: amax[layer] for layer in wanted if layer in amax}
    own = set(wanted)
    foreign = [layer for layer in amax if layer not in own]
    if wanted and not found:
        raise RecipeError(f"input scales: {source}: expected layers of this model, as {wanted[0]}, found {_some(foreign)}; "
                          "choose the source that belongs to this model")
    told = [*notices, f"input scales of {len(found)} layers from {source}"]
    strange = [layer for layer in foreign if not OUTSIDE.fullmatch(layer)]
    if len(strange) < len(foreign):
        told.append(f"{len(foreign) - len(strange)} layers of {source} are outside the blocks: never quantized, they need no scale")
    if strange:
        told.append(f"{len(strange)} layers of {source} have no place here: {_some(strange)}")
    shared = _shared(amax, [layer for layer in wanted if layer not in found]) if share else {}
    if shared:
        told.append(f"{len(shared)} layers take the input scale of a layer with the same input: {_kinds(shared)}")
    bare = [layer for layer in wanted if layer not in found and layer not in shared]
    if bare:
        told.append(f"{len(bare)} layers have no input scale: {_kinds(bare)}")
    return InputScales({layer: {**found, **shared}[layer] for layer in wanted if layer in found or layer in shared}, tuple(told))


def same_input(layer: str) -> str | None:
    """A name for what the layer sees, where other layers see the same; None where none does."""
    found = BLOCK.fullmatch(layer)
    if not found:
        return None
    block, name = found.groups()
    if name in ("self_attn.q", "self_attn.k", "self_attn.v"):
        return f"{block}.self_attn"
    return {"cross_attn.k": "text", "cross_attn.v": "text", "cross_attn.k_img": "image", "cross_attn.v_img": "image"}.get(name)


def _shared(amax: Mapping[str, float], without: list[str]) -> dict[str, float]:
    seen: dict[str, float] = {}
    for layer, value in amax.items():
        name = same_input(layer)
        if name is not None:
            seen[name] = max(value, seen.get(name, 0.0))
    return {layer: seen[same_input(layer)] for layer in without if same_input(layer) in seen}


def _positive(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < math.inf:  # false for NaN
        raise RecipeError(f"{where}: expected a finite number above 0, found {str(value)[:40]}; correct it")
    return float(value)


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" and more" if len(names) > SHOWN else "")


def _kinds(layers: Collection[str]) -> str:
    """ffn.2 (40), self_attn.q (4): how many blocks of each kind."""
    kinds = Counter(found[2] if (found := BLOCK.fullmatch(layer)) else layer for layer in layers)
    return ", ".join(f"{kind} ({count})" for kind, count in sorted(kinds.items()))
