"""Which layers multiply in 16 bit although their weight is stored narrow (W4A16, W8A16): from lists in files and from switches.

A list has one layer per line; empty lines and lines that start with # count for nothing. The switches are those of the original
converter (--full-precision-mm-cross-attn-qkvo and so on). There they concern NVFP4 layers alone; here every layer that ends
quantized, because an FP8 layer without an input scale gains from it just as much.
"""
from collections.abc import Iterable, Mapping

from ..specs import TensorSpec
from .moves import Choices, in_full_precision
from .names import some, sort_out
from .plan import KEEP, Choice

SWITCHES = {
    "cross_attn_kv": (".cross_attn.k", ".cross_attn.v"),
    "cross_attn_qkvo": tuple(f".cross_attn.{part}" for part in "qkvo"),
    "self_attn_qkvo": tuple(f".self_attn.{part}" for part in "qkvo"),
    "ffn_up": (".ffn.0",),
    "ffn_down": (".ffn.2",),
}


def parse(text: str, model: Mapping[str, TensorSpec], where: str) -> tuple[list[str], list[str]]:
    """The block linears that a list names, in its order, and notices of its other names. where: the list's file."""
    lines = (line.strip() for line in text.splitlines())
    return sort_out((line for line in lines if line and not line.startswith("#")), model, where)


def switched(layers: Iterable[str], switches: Iterable[str]) -> dict[str, str]:
    """Layer -> the switch that concerns it. switches: names in SWITCHES."""
    return {layer: switch for switch in switches for layer in layers if layer.endswith(SWITCHES[switch])}


def apply(choices: Mapping[str, Choice], listed: Iterable[str], switches: Iterable[str],
          where: str = "list") -> tuple[Choices, list[str]]:
    """`choices` with products in 16 bit for the listed and the switched layers; notices of those for which it changes nothing."""
    by_switch, by_list = switched(list(choices), list(switches)), list(listed)
    asked = {layer: f"switch {switch}" for layer, switch in by_switch.items()} | dict.fromkeys(by_list, where)
    found = {layer: in_full_precision(choice, asked[layer]) if layer in asked else choice for layer, choice in choices.items()}
    idle = [layer for layer in by_list if found[layer].format == KEEP]
    told = f"{where}: {len(idle)} layers are not quantized, so the list changes nothing there: {some(idle)}"
    return found, [told] if idle else []
