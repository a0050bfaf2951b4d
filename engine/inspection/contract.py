"""Whether ComfyUI loads a quantized file, and loads it right: every rule of its loader, told from headers and small tensors alone.

The loader (ComfyUI comfy/ops.py, _load_quantized_module) checks little: a scale of the wrong shape, a layer that names no format or
a quantized convolution load with at most a line in the log and give noise. Severities: `error`, the file does not load, or not
with these weights; `warning`, it loads and does less than it could, or something unexpected; `note`, allowed and worth knowing.
"""
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..bases import stated as reader
from ..bases.quant_entries import COMPANIONS, ENTRY, MARKER, Fetch
from ..bases.stated import UNREADABLE, Stated
from ..header import Header
from ..specs import NAMES
from .layers import WEIGHTS, Layer, faults

QUANTOPS = "ComfyUI-QuantOps"
# Formats of other tools that plain ComfyUI does not know, and what loads them.
FOREIGN = {"float8_e4m3fn_rowwise": QUANTOPS, "float8_e4m3fn_blockwise": QUANTOPS, "float8_e4m3fn_block3d": QUANTOPS,
           "int8_blockwise": QUANTOPS, "hybrid_mxfp8": QUANTOPS, "svdquant_w4a4": None, "awq_w4a16": None}
FP8 = {torch.float8_e4m3fn, torch.float8_e5m2}
CODES = {torch.uint8, torch.int8}
INPUTS = {"q": "dim", "k": "dim", "v": "dim", "o": "dim", "k_img": "dim", "v_img": "dim", "0": "dim", "2": "ffn"}
SEVERITIES = ("error", "warning", "note")


@dataclass(frozen=True)
class Problem:
    """key: as the file spells it, or "" for the file as a whole; text: expected, found, what follows."""

    key: str
    text: str
    severity: str


def check(headers: Sequence[Header], fetch: Fetch) -> list[Problem]:
    """All that is wrong with one model's files, errors first. fetch: stored bytes of a small tensor by its name in the file."""
    return judge(reader.read(headers, fetch), fetch)


def judge(stated: Stated, fetch: Fetch) -> list[Problem]:
    """`check`, of what was read already."""
    parts = stated.parts()
    widths = _widths(parts)
    found = [*_file(stated, parts), *_unsaid(stated, parts)]
    for layer in stated.layers:
        found += (Problem(stated.keys.get(f"{layer}.{last}", layer if last == "comfy_quant" else f"{layer}.{last}"), text, severity)
                  for severity, last, text in _layer(stated, layer, parts.get(layer, {}), widths))
        found += (Problem(stated.keys[key], text, "error") for key, text in _values(stated, layer, parts.get(layer, {}), fetch))
    return sorted(found, key=lambda each: SEVERITIES.index(each.severity))


def grouped(problems: Sequence[Problem]) -> list[str]:
    """One line for each kind of problem, with its first key and how many more there are."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for each in problems:
        kinds.setdefault((each.severity, each.text), []).append(each.key)
    return [f"{severity}: {keys[0] + ': ' if keys[0] else ''}{text}" + (f" (and {len(keys) - 1} more)" if keys[1:] else "")
            for (severity, text), keys in kinds.items()]


def _file(stated: Stated, parts: dict) -> Iterator[Problem]:
    for key, why in stated.unreadable.items():
        yield Problem(stated.keys.get(key, key), f"{why}; ComfyUI stops here", "error")
    if stated.prefixed:
        text = (f"_quantization_metadata: expected names without prefix, found {len(stated.prefixed)} with one, as "
                f"{stated.prefixed[0]}; ")
        is_bare = not any(key != name for key, name in stated.keys.items() if not stated.is_legacy)
        yield Problem("", text + ("ComfyUI does not find these layers in the model" if is_bare else
                                  "ComfyUI loads it and logs them as unexpected"), "error" if is_bare else "warning")
    for layer in stated.clashing:
        yield Problem(stated.keys[layer + ENTRY], "the header says otherwise of this layer; ComfyUI believes the header", "warning")
    if stated.is_legacy:
        yield Problem(MARKER, "scaled FP8 of the older kind: ComfyUI converts it while loading, to float8_e4m3fn", "note")
    raw = [layer for layer, each in parts.items() if layer not in stated.layers and "weight" in each
           and each["weight"].dtype in FP8 and not each.keys() & COMPANIONS]
    if raw:
        yield Problem("", f"{len(raw)} FP8 weight(s) without a scale: cast, not quantized, which ComfyUI loads as they are", "note")


def _unsaid(stated: Stated, parts: dict) -> Iterator[Problem]:
    """Quantized tensors of layers that name no format."""
    for layer, each in parts.items():
        if layer in stated.layers or layer == "":
            continue
        beside = sorted(each.keys() & COMPANIONS)
        weight = each.get("weight")
        if weight and (weight.dtype in CODES or (weight.dtype in FP8 and {"weight_scale", "scale_weight"} & set(beside))):
            text = f"expected its layer to name its format, found {NAMES[weight.dtype]} codes alone; they are taken for the weights"
            yield Problem(stated.keys[f"{layer}.weight"], text, "error")
        elif beside:
            key = stated.keys[f"{layer}.{beside[0]}"]
            severity = "error" if "pre_quant_scale" in beside else "warning"
            yield Problem(key, "expected its layer to name its format, found none; ComfyUI does not read it", severity)


def _layer(stated: Stated, name: str, parts: dict, widths: dict[str, int]) -> Iterator[tuple[str, str, str]]:
    entry = parts.get("comfy_quant")
    if entry and entry.dtype is not torch.uint8:
        yield "warning", "comfy_quant", f"expected U8 [bytes of its JSON], found {NAMES[entry.dtype]}; some programs do not read it"
    elif entry and len(entry.shape) != 1:
        yield "warning", "comfy_quant", f"expected one axis, found {list(entry.shape)}; some programs do not read it"
    form = stated.format_of(name)
    if name + ENTRY in stated.unreadable:
        return
    if form == UNREADABLE:
        yield "error", "comfy_quant", "expected the name of its format, found none; ComfyUI stops here"
    elif form not in WEIGHTS:
        yield "error", "comfy_quant", _unknown(form)
    elif "weight" not in parts:
        is_tensor = name in stated.specs
        what = "a parameter that is no linear layer's" if is_tensor else "no weight of that name"
        text = f"expected a linear layer, found {what}; ComfyUI logs it as unexpected"
        yield "error" if is_tensor else "warning", "comfy_quant", text
    elif len(parts["weight"].shape) != 2:
        found = list(parts["weight"].shape)
        yield "error", "weight", f"expected a linear layer as {form}, found shape {found}: its codes load without their scale"
    else:
        yield from faults(Layer(name, stated.layers[name], parts, _own_shape(name, parts, widths)), form)


def _unknown(form: str) -> str:
    """What to do with a format that plain ComfyUI does not know."""
    if form in FOREIGN:
        way_out = f"{FOREIGN[form]} loads it" if FOREIGN[form] else "no released ComfyUI loads it"
        return f"expected a format of plain ComfyUI, found {form}; {way_out}"
    return f"expected one of {', '.join(WEIGHTS)}, found {form[:60]!r}; ComfyUI stops here, an update may know it"


def _widths(parts: dict) -> dict[str, int]:
    """Width of the model and of its feed-forward layers, as far as its tensors tell."""
    dim = parts.get("head", {}).get("modulation")
    ffn = parts.get("blocks.0.ffn.0", {}).get("bias")
    return {name: spec.shape[-1] for name, spec in (("dim", dim), ("ffn", ffn)) if spec and spec.shape}


def _own_shape(name: str, parts: dict, widths: dict[str, int]) -> tuple[int | None, int | None]:
    """The weight's own (rows, columns): rows from the bias, columns from the width of what feeds a block's linear."""
    bias, is_block = parts.get("bias"), "blocks." in name
    columns = widths.get(INPUTS.get(name.rpartition(".")[2], "")) if is_block else None
    return (bias.shape[0] if bias and len(bias.shape) == 1 else None), columns


def _values(stated: Stated, layer: str, parts: dict, fetch: Fetch) -> Iterator[tuple[str, str]]:
    """Scales of a single number that no layer can use."""
    for last in ("weight_scale", "weight_scale_2", "input_scale"):
        key = f"{layer}.{last}"
        value = stated.number(key, fetch) if last in parts else None
        if value is not None and (not math.isfinite(value) or (last == "input_scale" and value <= 0)):
            yield key, f"expected a finite number{' above 0' if last == 'input_scale' else ''}, found {value:g}"
