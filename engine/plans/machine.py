"""What this machine makes of a format: native, emulated, or not at all, from facts that the nodes gather.

Same rules as cards.py, with what a class of card leaves open: the versions of ComfyUI and torch, the CUDA that torch is built for,
and which of comfy-kitchen's kernels are on. comfy/quant_ops.py turns its CUDA backend off below CUDA 13; comfy-kitchen then falls
back to plain torch: `torch._int_mm` still multiplies in INT8, `convrot_w4a4` is multiplied in 16 bit (backends/eager), and inputs
of FP8, MXFP8 and NVFP4 are quantized by several passes instead of one kernel.
"""
import re
from dataclasses import dataclass

from ...quant.formats import BLOCK_TYPES
from .cards import (
    AFTER,
    ASKED,
    DECODED,
    E5M2_FAILS,
    EMULATED,
    FAILS,
    FLOATS,
    FP4,
    FP8,
    IGNORED,
    INT4,
    INT8,
    NATIVE,
    NOT_LOADABLE,
    PLAIN,
    SIXTEEN,
    W4A4_SLOW,
    Verdict,
)

CUDA_NEEDED = (13,)                                # comfy/quant_ops.py
MXFP8_TORCH = (2, 10)                              # comfy/model_management.py, supports_mxfp8_compute
XPU_INT8_TORCH = (2, 9)                            # pytorch PR 157769 gave XPU torch._int_mm
INT8_CAPABILITY = (7, 5)                           # comfy-kitchen, MIN_SM_VERSION of TensorWiseINT8Layout
W4A8_CAPABILITY = (8, 0)                           # comfy-kitchen, constraint of w4a8_int8_linear
INT4_MAJORS = {7, 8}                               # comfy-kitchen, backends/cuda: SM 7.5 and 8.x have INT4 products
# comfy-kitchen's registered products that the INT formats come through.
KERNELS = {"int8_tensorwise": "int8_linear", "asym_w4a8_int8": "w4a8_int8_linear", "convrot_w4a4": "convrot_w4a4_linear"}


@dataclass(frozen=True)
class Machine:
    """Facts of the machine that ComfyUI runs on.

    vendor: nvidia, amd, intel, cpu or another; capability: of an NVIDIA card, else None; torch, comfyui: versions; cuda: what
    torch is built for, None without. formats: keys of QUANT_ALGOS. fp8, nvfp4, mxfp8: what comfy.model_management's supports_*
    say. kernels: those of KERNELS' values that a backend of comfy-kitchen other than `eager` has registered and enabled, for
    whatever card: `comfy_kitchen.list_backends` does not look at the capability that each needs. None on a processor.
    """

    vendor: str
    capability: tuple[int, int] | None
    torch: str
    cuda: str | None
    comfyui: str
    formats: frozenset[str]
    fp8: bool = False
    nvfp4: bool = False
    mxfp8: bool = False
    kernels: frozenset[str] = frozenset()


def numbers(version: str | None) -> tuple[int, ...]:
    """Leading numbers of a version: `2.13.0+cu130` -> (2, 13, 0); None -> ()."""
    found = re.match(r"\d+(?:\.\d+)*", version or "")
    return tuple(int(part) for part in found[0].split(".")) if found else ()


def card_of(facts: Machine) -> str:
    """Class of card that comes nearest: a key of cards.CARDS."""
    if facts.vendor == "nvidia" and facts.capability:
        floors = (((10, 0), "rtx50"), ((8, 9), "rtx40"), ((8, 0), "rtx30"), ((7, 5), "rtx20"))
        return next((card for floor, card in floors if facts.capability >= floor), "cpu")
    return {"amd": "rdna", "intel": "arc"}.get(facts.vendor, "cpu")


def judge_machine(form: str, facts: Machine, *, full_precision: bool = False) -> Verdict:
    """What a layer in a format becomes on this machine. form: as in cards.judge. Raises ValueError."""
    if form in PLAIN:
        return Verdict(NATIVE, SIXTEEN, "not quantized")
    if form in BLOCK_TYPES:
        return Verdict(EMULATED, SIXTEEN, DECODED)
    if form not in AFTER:
        raise ValueError(f"format: expected one of {', '.join([*AFTER, *sorted(PLAIN)])}, found {form}")
    if form not in facts.formats:
        return Verdict(NOT_LOADABLE, SIXTEEN, f"ComfyUI {facts.comfyui} does not know it: one newer than {AFTER[form]} is needed")
    if form in FLOATS:
        return Verdict(EMULATED, SIXTEEN, ASKED) if full_precision else _float(form, facts)
    found = _integer(form, facts)
    return Verdict(found.word, found.unit, f"{found.reason}; {IGNORED}") if full_precision else found


def _float(form: str, facts: Machine) -> Verdict:
    """FP8, MXFP8 or NVFP4, without full precision."""
    if not {"nvfp4": facts.nvfp4, "mxfp8": facts.mxfp8}.get(form, facts.fp8):
        return Verdict(EMULATED, SIXTEEN, f"{_missing(form, facts)}: dequantized, multiplied in 16 bit")
    if form == "float8_e5m2" and facts.vendor == "nvidia":
        return Verdict(FAILS, SIXTEEN, E5M2_FAILS)
    unit, off = FP4 if form == "nvfp4" else FP8, _backend_off(facts)
    return Verdict(NATIVE, unit, f"{unit.upper()} units; {off}: inputs are quantized by plain torch, slower" if off
                   else f"{unit.upper()} units")


def _missing(form: str, facts: Machine) -> str:
    """Why ComfyUI does not multiply a float format natively here."""
    needed = (10, 0) if form in {"nvfp4", "mxfp8"} else (8, 9)
    if facts.vendor != "nvidia":
        return f"ComfyUI multiplies {form} natively on NVIDIA cards" + (" and RDNA 4" if form.startswith("float8") else "")
    if facts.capability and facts.capability < needed:
        return f"compute capability {facts.capability[0]}.{facts.capability[1]}, {needed[0]}.{needed[1]} is needed"
    if form == "mxfp8" and numbers(facts.torch) < MXFP8_TORCH:
        return f"torch {facts.torch}, 2.10 is needed"
    return f"ComfyUI says that this card and torch {facts.torch} cannot"


def _backend_off(facts: Machine) -> str | None:
    """Why comfy-kitchen's CUDA backend does nothing on an NVIDIA card; None: it is on, or the card is another's."""
    if facts.vendor != "nvidia" or facts.kernels:
        return None
    if facts.cuda and numbers(facts.cuda) < CUDA_NEEDED:
        return f"comfy-kitchen's CUDA backend is off because torch is built for CUDA {facts.cuda}; 13.0 is needed"
    return "comfy-kitchen's CUDA backend is off"


def _integer(form: str, facts: Machine) -> Verdict:
    """The INT formats: a kernel of comfy-kitchen's, or plain torch."""
    off = _backend_off(facts)
    if facts.vendor == "intel" and numbers(facts.torch) < XPU_INT8_TORCH and form != "convrot_w4a4":
        return Verdict(FAILS, SIXTEEN, f"torch {facts.torch} has no INT8 product on Arc, 2.9 is needed")
    if facts.vendor == "nvidia" and facts.capability and facts.capability < INT8_CAPABILITY:
        return Verdict(EMULATED, SIXTEEN, "comfy-kitchen's INT kernels start at compute capability 7.5; plain torch, untested")
    has_kernel = KERNELS[form] in facts.kernels and not (form == "asym_w4a8_int8" and facts.capability
                                                         and facts.capability < W4A8_CAPABILITY)
    if form == "convrot_w4a4" and not has_kernel:
        return Verdict(EMULATED, SIXTEEN, f"{off}: {W4A4_SLOW}" if off else W4A4_SLOW)
    if form == "convrot_w4a4" and (facts.vendor == "amd" or (facts.capability or (0,))[0] in INT4_MAJORS):
        return Verdict(NATIVE, INT4, "INT4 units, the input quantized to 4 bit")
    if has_kernel:
        return Verdict(NATIVE, INT8, "INT8 units, the input quantized row by row")
    slow = "INT8 by plain torch" + ("; the weight is unpacked at every call" if form == "asym_w4a8_int8" else "")
    return Verdict(NATIVE, INT8, f"{slow}; {off}" if off else slow)
