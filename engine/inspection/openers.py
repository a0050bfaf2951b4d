"""Which programs open a model file, from which version on, and why: foretold from its names and formats.

A version is what ComfyUI's tree said when the format came (plans/cards.py): the first release after it has it.
"""
from collections.abc import Mapping, Sequence

from ..bases.names import is_diffusers
from ..bases.stated import Stated
from ..plans.cards import AFTER
from .contract import FOREIGN, Problem

SMOOTHING = "0.29.0"                               # pre_quant_scale
# Of ComfyUI-GGUF, loader.py: architectures of diffusion models; and dequant.py: types that it decodes on the card.
GGUF_ARCHITECTURES = {"flux", "sd1", "sdxl", "sd3", "aura", "hidream", "cosmos", "ltxv", "hyvid", "wan", "lumina2", "qwen_image"}
GGUF_TYPES = {"F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K", "Q2_K", "IQ4_NL",
              "IQ4_XS"}
WIDE = {"F64", "F32", "F16", "BF16"}


def opens(program: str, version: str | None, why: str) -> dict:
    """version: the last that does not, None when any does. program: "none" when nothing known opens the file."""
    return {"program": program, "version": version, "why": why}


def of_model(stated: Stated, problems: Sequence[Problem], dtypes: Mapping[str, object], files: int) -> list[dict]:
    """Programs for a model of safetensors files. dtypes: names of the dtypes in it."""
    is_plain = not stated.layers and set(dtypes) <= WIDE
    if is_diffusers(stated.specs):
        return [opens("diffusers", None, "the names of its layers are diffusers'") if is_plain else
                opens("none", None, "layers are quantized for ComfyUI, which does not know the names of diffusers")]
    if files > 1:
        return [opens("none", None, "ComfyUI opens single files only: join the shards, as saving a model here does")]
    wrong = next((each for each in problems if each.severity == "error"), None)
    packs = sorted({FOREIGN[form] or "" for form in map(stated.format_of, stated.layers) if form in FOREIGN})
    if packs:
        return [opens(f"ComfyUI with {packs[0]}", None, "formats that plain ComfyUI does not know")] if all(packs) else [
            opens("none", None, "formats that no released ComfyUI loads")]
    if wrong:
        return [opens("none", None, f"{wrong.key}: {wrong.text}" if wrong.key else wrong.text)]
    return [_comfyui(stated)] + ([opens("diffusers", None, "from_single_file")] if is_plain else [])


def _comfyui(stated: Stated) -> dict:
    needs = {f"{stated.format_of(layer)} layers": AFTER[stated.format_of(layer)] for layer in stated.layers}
    if any(key.endswith(".pre_quant_scale") for key in stated.specs):
        needs["pre_quant_scale"] = SMOOTHING
    if stated.is_legacy or not needs:
        return opens("ComfyUI", None, "scaled FP8 of the older kind" if stated.is_legacy else "plain weights")
    highest = max(needs.values(), key=lambda version: [int(part) for part in version.split(".")])
    return opens("ComfyUI", highest, ", ".join(sorted(name for name, version in needs.items() if version == highest)))


def of_gguf(architecture: str | None, types: Mapping[str, object], problems: Sequence[Problem] = ()) -> list[dict]:
    """Programs for a GGUF file. types: names of those in it."""
    if architecture not in GGUF_ARCHITECTURES:
        return [opens("none", None, f"expected a diffusion model, found general.architecture {architecture!r}")]
    wrong = next((each for each in problems if each.severity == "error"), None)
    if wrong:
        return [opens("none", None, f"{wrong.key}: {wrong.text}" if wrong.key else wrong.text)]
    slow = sorted(set(types) - GGUF_TYPES)
    why = f"architecture {architecture}" + (f"; {', '.join(slow)} is decoded on the processor, slowly" if slow else "")
    return [opens("ComfyUI with ComfyUI-GGUF", None, why)]
