"""File names from a pattern: `%title% %version% %task% %size% %expert% %format%`, and presets as people know them.

The two halves of a pair must differ in exactly the expert's token, so that every loader, ours included, finds one from the other;
that is checked on the finished names, because a title such as "HighNoise mix" would break it.
"""
import re

from ..bases.roles import partner, role_of
from ..errors import PlanError
from ..system import legal_name

# preset -> pattern, and how it spells high and low
PRESETS = {
    "comfy": ("%title%_%version%_%task%_%expert%_%size%_%format%", ("high_noise", "low_noise")),
    "quantstack": ("%title%-%version%-%task%-%size%-%expert%-%format%", ("HighNoise", "LowNoise")),
    "plain": ("%title%_%expert%_%format%", ("high", "low")),
}
# As published files spell them (Comfy-Org's repackaged Wan 2.2, QuantStack's GGUF).
FORMAT_TOKENS = {"float8_e4m3fn": "fp8_scaled", "float8_e5m2": "fp8_e5m2_scaled", "int8_tensorwise": "int8"}
TOKENS = ("title", "version", "task", "size", "expert", "format")


def name_file(pattern: str, values: dict[str, str], role: str, ending: str = "safetensors") -> str:
    """File name for one output. ending: safetensors or gguf.

    pattern: a preset's name or a pattern; values: title, version, task, size, format (an output's label). An empty value takes its
    separator with it. Raises PlanError on an unknown token or a name that some system forbids.
    """
    template, spelling = PRESETS.get(pattern, (pattern, PRESETS["comfy"][1]))
    unknown = set(re.findall(r"%(\w*)%", template)) - set(TOKENS)
    if unknown:
        raise PlanError(f"file name {template!r}: %{min(unknown)}% is not known; use {' '.join(f'%{token}%' for token in TOKENS)}")
    if role != "model" and "%expert%" not in template:
        raise PlanError(f"file name {template!r}: both experts would get one name; put %expert% into it")
    shown = {**values, "expert": dict(zip(("high_noise", "low_noise"), spelling, strict=True)).get(role, ""),
             "format": _format_token(values["format"])}
    if pattern == "quantstack":
        shown |= {"task": shown["task"].upper(), "format": shown["format"].upper()}
    for token in TOKENS:
        text = shown[token].strip()
        template = template.replace(f"%{token}%", text) if text else re.sub(rf"(?:[-_. ]%{token}%|%{token}%[-_. ]?)", "", template)
    if not template.strip(" -_."):
        raise PlanError(f"file name {pattern!r}: nothing is left of it for this model; put %title% into it")
    return legal_name(f"{template}.{ending}")


def _format_token(label: str) -> str:
    """An output's label with its format as published files spell it."""
    name = max((name for name in FORMAT_TOKENS if label == name or label.startswith(f"{name}_")), key=len, default="")
    return FORMAT_TOKENS.get(name, "") + label[len(name):]


def check_names(names: dict[str, str]) -> None:
    """Raise PlanError unless the names of a pair lead from one to the other. names: role -> file name."""
    high, low = names.get("high_noise"), names.get("low_noise")
    if high is None or low is None:
        return
    if role_of(high, {}).role != "high_noise" or role_of(low, {}).role != "low_noise" or partner(high, exists=low.__eq__) != low:
        raise PlanError(f"{high} and {low}: no loader can tell which is which; take words like high and low out of the title")
