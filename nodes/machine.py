"""Facts of this machine for the engine's judgement of formats: card, torch, ComfyUI, comfy-kitchen's kernels."""
import comfy.model_management as mm
import comfy_kitchen
import comfyui_version
import torch
from comfy.quant_ops import QUANT_ALGOS

from ..engine.plans.machine import KERNELS, Machine, card_of, judge_machine
from ..engine.plans.presets import HARDWARE

HARDWARE_OF = {"rtx50": "blackwell", "rtx40": "ada", "rtx30": "ampere", "rtx20": "ampere"}


def facts() -> Machine:
    """What the engine cannot know: it imports no ComfyUI."""
    device = mm.get_torch_device()
    vendor = {"cuda": "amd" if torch.version.hip else "nvidia", "xpu": "intel"}.get(device.type, device.type)
    capability = torch.cuda.get_device_capability(device) if vendor == "nvidia" else None
    return Machine(vendor, capability, torch.__version__, torch.version.cuda, comfyui_version.__version__, frozenset(QUANT_ALGOS),
                   mm.supports_fp8_compute(device), mm.supports_nvfp4_compute(device), mm.supports_mxfp8_compute(device),
                   _kernels() if device.type != "cpu" else frozenset())


def _kernels() -> frozenset[str]:
    """Products that a backend of comfy-kitchen other than plain torch has, for whatever card: which one each needs, the engine
    knows."""
    found = set()
    for name, backend in comfy_kitchen.list_backends().items():
        if name != "eager" and backend.get("available") and not backend.get("disabled"):
            found |= set(backend.get("capabilities", ())) & set(KERNELS.values())
    return frozenset(found)


def card() -> str:
    """Class of this machine's card: a key of plans.cards.CARDS."""
    return card_of(facts())


def hardware() -> str:
    """The presets' word for it."""
    found = HARDWARE_OF.get(card(), "any")
    return found if found in HARDWARE else "any"


def line(form: str, *, full_precision: bool = False) -> str:
    """`nvfp4: emulated on this machine: FP4 units came with RTX 50 ...`"""
    verdict = judge_machine(form, facts(), full_precision=full_precision)
    return f"{form}: {verdict.word} on this machine: {verdict.reason}"
