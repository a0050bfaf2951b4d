"""The settings that a base's header gives in its metadata `config`: ComfyUI puts them before what the shapes say.

Source: ComfyUI 0.33 comfy/model_detection.py, detect_unet_config, `dit_config.update(json.loads(metadata["config"]).get(...))`.
"""
import reprlib

from .. import strict_json
from ..errors import SourceError
from .source import Source

COUNTS = ("dim", "ffn_dim", "num_heads", "num_layers", "in_dim", "out_dim")


def read_settings(source: Source) -> dict:
    """Setting -> value; empty without a config. The only sign of Animate 2, FlowRVS and causal models.

    Raises SourceError for text that is no such JSON, and for a count or a model type that is none.
    """
    if "config" not in source.metadata:
        return {}
    try:
        found = strict_json.parse(source.metadata["config"].encode()).get("transformer", {})
    except ValueError as cause:
        raise SourceError(f"{source.path}: metadata config: expected JSON, found: {str(cause)[:99]}; ComfyUI refuses it") from cause
    if not isinstance(found, dict):
        raise SourceError(f"{source.path}: metadata config: expected settings by name, found {str(found)[:80]}; ComfyUI refuses it")
    for key, value in found.items():
        if key in COUNTS and (type(value) is not int or value < 1):
            raise _misfit(source, key, "a whole number above 0", value)
        if key == "model_type" and not isinstance(value, str):
            raise _misfit(source, key, "a text", value)
    return found


def _misfit(source: Source, key: str, expected: str, found: object) -> SourceError:
    shown = reprlib.repr(found)
    return SourceError(f"{source.path}: metadata config: {key}: expected {expected}, found {shown}; get the file again")
