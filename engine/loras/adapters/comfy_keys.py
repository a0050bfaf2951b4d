"""What ComfyUI 0.33 makes of a LoRA file on a Wan model: which of its keys it reads, and which of them win.

Facts: comfy/lora.py (model_lora_keys_unet: two spellings of a layer, `lora_unet_` first; load_lora: per layer one patch, the
last one found wins: pairs, LoHa, LoKr, GLoRA, OFT, BOFT, w_norm, diff, set_weight), comfy/lora_convert.py (Fun files by a key).
"""
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from ...bases.prefixes import SENTINEL
from ...errors import LoraError
from ..modules import Refused
from .comfy_patch import ComfyPatch
from .spelling import ENDINGS, GLORA, LOHA, LOKR, PAIR_PARTS

if TYPE_CHECKING:
    from ..dialects import Index
    from ..lora import LoraFile

FUN = "lora_unet__"
UNREAD = "ComfyUI 0.33 does not read it"


def lay_out(lora: "LoraFile", index: "Index") -> tuple[dict[str, list[ComfyPatch]], list[Refused]]:
    """(key of the base -> the one patch ComfyUI would put on it, refused keys) of a file.

    Raises LoraError when ComfyUI's own loading would stop.
    """
    # VideoX-Fun files are renamed before anything else
    is_fun = SENTINEL in lora.header.entries
    names = {f"lora_unet_{key.removeprefix(FUN)}" if is_fun and key.startswith(FUN) else key: key for key in lora.header.entries}
    applied, reasons = {}, {}
    for target in index.specs:
        patches = list(_patches(lora, names, target, index))
        if not patches:
            continue
        problem = patches[-1].check(lora, index.specs[target].shape)
        if problem is None:
            applied[target] = [patches[-1]]
        winner = patches[-1].keys[0]
        reasons |= {key: f"ComfyUI 0.33 lets {winner} take its place" for patch in patches[:-1] for key in patch.keys}
        reasons |= {key: problem for key in patches[-1].keys if problem}
    used = {key for patches in applied.values() for key in patches[0].keys}
    return applied, [Refused(key, reasons.get(key, UNREAD)) for key in lora.header.entries if key not in used]


def _patches(lora: "LoraFile", names: dict[str, str], target: str, index: "Index") -> Iterator[ComfyPatch]:
    """Every patch that ComfyUI finds for this tensor, in the order it finds them."""
    layer, _, kind = target.rpartition(".")
    both = (f"lora_unet_{layer.replace('.', '_')}", f"diffusion_model.{layer}")
    if kind == "weight":
        for module in both:
            yield from _module(lora, names, module)
        return
    if kind == "bias" and f"{layer}.weight" in index.specs:
        for module in both:
            parts = ("b_norm", "diff_b") if f"{module}.w_norm" in names else ("diff_b",)
            yield from (ComfyPatch(part, {part: names[f"{module}.{part}"]}, None) for part in parts if f"{module}.{part}" in names)
    yield from _module(lora, names, f"diffusion_model.{target}")


def _module(lora: "LoraFile", names: dict[str, str], module: str) -> Iterator[ComfyPatch]:
    """Patches of one module name for its own tensor."""
    def found(*parts: str) -> dict[str, str]:
        return {part: names[module + ENDINGS[part]] for part in parts if module + ENDINGS[part] in names}

    beside = found("alpha", "dora_scale")
    alpha = _number(lora, beside["alpha"]) if "alpha" in beside else None
    pair = next((own for own in PAIR_PARTS.values() if found(own[0])), None)
    kron = ("lokr_w1", "lokr_w2", "lokr_w1_a", "lokr_w2_a")
    groups = [("loha", LOHA, LOHA[:1]), ("lokr", LOKR, kron), ("glora", GLORA, GLORA[:1])]
    if pair:
        keys = found(*pair)
        parts = dict(zip(("up", "down"), keys.values(), strict=False)) | (found("mid") if pair == PAIR_PARTS["lora"] else {})
        yield ComfyPatch("lora", parts | beside, alpha, _rank(lora, parts.get("down")))
    for kind, own, tells in groups:
        if found(*tells):
            yield ComfyPatch(kind, found(*own) | beside, alpha, _rank(lora, found("hada_w1_b").get("hada_w1_b")))
    blocks = found("oft_blocks", "rescale")
    axes = len(lora.header.entries[blocks["oft_blocks"]].spec.shape) if "oft_blocks" in blocks else 0
    if axes in (3, 4):
        yield ComfyPatch("oft" if axes == 3 else "boft", blocks | beside, alpha)
    for part in ("w_norm", "diff", "set_weight"):
        yield from (ComfyPatch(part, own, None) for own in [found(part)] if own)


def _rank(lora: "LoraFile", key: str | None) -> int:
    """First axis of a stored factor; 0 where there is none."""
    shape = lora.header.entries[key].spec.shape if key else ()
    return shape[0] if shape else 0


def _number(lora: "LoraFile", key: str) -> float:
    """A stored number exactly, whatever its dtype (`LoraFile.read` rounds to float32). Raises LoraError when there are several."""
    entry = lora.header.entries[key]
    if entry.spec.numel != 1:
        raise LoraError(f"{lora.name}: {key}: expected one number, found shape {entry.spec.shape}, on which ComfyUI 0.33 fails")
    raw = bytearray(entry.spec.nbytes)
    lora.file.read_into(entry.start, memoryview(raw))
    return torch.frombuffer(raw, dtype=torch.uint8).view(entry.spec.dtype).item()
