"""What of a file's quantized layers is read, for whoever reads it: the header's layers, the older marker, entries, single numbers.

A file may claim anything, so no tensor is fetched before its size is known to be that of an entry, LONGEST bytes, or of one number.
"""
import json
import struct
from collections.abc import Callable, Mapping

import torch

from .. import strict_json
from ..specs import TensorSpec

MARKER, METADATA = "scaled_fp8", "_quantization_metadata"
# Last parts of the names of tensors that go with a quantized weight, of every format and tool that is told or refused here.
COMPANIONS = frozenset({"weight_scale", "weight_scale_2", "weight_s_rel", "weight_s_channel", "weight_codebook",
                        "weight_correction", "input_scale", "pre_quant_scale", "scale_weight", "scale_input"})
ENTRY, LONGEST = ".comfy_quant", 4096              # more bytes are no entry: ComfyUI's longest has about 120
OLDER_SCALE = ".scale_weight"                      # beside the marker

Fetch = Callable[[str], bytes]


def number(spec: TensorSpec, name: str, fetch: Fetch) -> float | None:
    """The one number in a stored tensor; None, and nothing is fetched, when it is not one float."""
    if spec.numel != 1 or not spec.dtype.is_floating_point:
        return None
    stored = fetch(name)
    if spec.dtype is torch.float32:                # a file has a thousand of them, and a tensor costs ten times more to make
        return struct.unpack("<f", stored)[0]
    return torch.frombuffer(bytearray(stored), dtype=spec.dtype).float().item()


def header_layers(metadata: Mapping[str, str]) -> tuple[dict | None, str | None]:
    """Layer -> settings as the header names them, None when it says nothing, {} when it cannot be read; and why it cannot."""
    if METADATA not in metadata:
        return None, None
    try:
        layers = strict_json.parse(metadata[METADATA].encode()).get("layers")
    except ValueError as cause:
        return {}, f"expected JSON, found: {str(cause)[:100]}"
    return (layers, None) if isinstance(layers, dict) else ({}, f"expected layers by name, found {str(layers)[:80]}")


def older_layers(specs: Mapping[str, TensorSpec]) -> dict[str, dict] | None:
    """Layer -> settings of the older kind, None where the marker is missing. specs: by bare or native key, names not renewed."""
    if MARKER not in specs:
        return None
    settings = {"format": "float8_e4m3fn"} | ({"full_precision_matrix_mult": True} if specs[MARKER].numel == 2 else {})
    return {key.removesuffix(OLDER_SCALE): dict(settings) for key in specs if key.endswith(OLDER_SCALE)}


def read_entries(specs: Mapping[str, TensorSpec], fetch: Fetch) -> tuple[dict[str, dict], dict[str, str]]:
    """Layer -> what its own entry says, {} where that cannot be read, and the entry's key -> why it cannot.

    specs: key -> spec, of which the keys of entries count; fetch: stored bytes by such a key.
    """
    layers, why = {}, {}
    for key, spec in specs.items():
        if key.endswith(ENTRY):
            layers[key.removesuffix(ENTRY)], wrong = _entry(spec, key, fetch)
            why |= {key: wrong} if wrong else {}
    return layers, why


def _entry(spec: TensorSpec, key: str, fetch: Fetch) -> tuple[dict, str | None]:
    if spec.nbytes > LONGEST:
        return {}, f"expected at most {LONGEST} bytes of JSON, found {spec.nbytes}"
    try:
        body = fetch(key)
        return strict_json.parse(body.decode(json.detect_encoding(body)).encode()), None  # as json.loads takes it
    except ValueError as cause:
        return {}, f"expected JSON, found: {str(cause)[:100]}"
