"""What multiplies a layer on each class of card: the unit, native or emulated, and why; and which ComfyUI loads a format at all.

ComfyUI 0.33 (comfy/ops.py pick_operations, comfy/model_management.py supports_*_compute) knows two kinds of quantized formats:

    FP8, MXFP8, NVFP4     both operands quantized, product by torch's scaled_mm or comfy-kitchen, where the card has the units;
                          elsewhere, and with full_precision_matrix_mult, the weight is dequantized and multiplied in 16 bit
    the INT formats       comfy-kitchen 0.2.31 quantizes the input itself, on every device; `full_precision_matrix_mult` changes
                          nothing: the resident weight reaches comfy-kitchen's own product all the same

The types of GGUF come through ComfyUI-GGUF (ops.py, dequant.py), which decodes the weight at every call, on every device.
`native` is the product in the unit named. `emulated` is right and small, and no faster than 16 bit. `fails` loads, and stops at
the first step. `not loadable` is what a ComfyUI without the format says.
"""
from dataclasses import dataclass

from ...quant.formats import BLOCK_TYPES
from .plan import KEEP

NATIVE, EMULATED, FAILS, NOT_LOADABLE = "native", "emulated", "fails", "not loadable"
FP4, FP8, INT8, INT4, SIXTEEN = "fp4", "fp8", "int8", "int4", "16 bit"
UNITS = (FP4, FP8, INT8, INT4, SIXTEEN)
CARDS = {"rtx50": "RTX 50", "rtx40": "RTX 40", "rtx30": "RTX 30", "rtx20": "RTX 20", "rdna": "RDNA", "arc": "Arc", "cpu": "any"}
PLAIN = frozenset({"bf16", "fp16", "fp32", KEEP})
FLOATS = frozenset({"float8_e4m3fn", "float8_e5m2", "mxfp8", "nvfp4"})
INTS = frozenset({"int8_tensorwise", "convrot_w4a4", "asym_w4a8_int8"})
# Version in ComfyUI's tree when the format came in: the first release after it has it (git log -S of comfy/quant_ops.py).
AFTER = {"float8_e4m3fn": "0.3.76", "float8_e5m2": "0.3.76", "nvfp4": "0.7.0", "mxfp8": "0.17.0", "int8_tensorwise": "0.26.0",
         "convrot_w4a4": "0.27.0", "asym_w4a8_int8": "0.30.0"}
# What comes natively, in the order of the solver's preference at equal error. FP8 from SM 8.9, NVFP4 and MXFP8 from SM 10.0, INT
# from SM 7.5 (comfy-kitchen's MIN_SM_VERSION and constraints). INT4 tensor cores: comfy-kitchen uses them on SM 7.5 and 8.x alone
# (backends/cuda, _cuda_device_supports_native_int4_mma), and on RDNA 3 and 4; where it does not, INT8 takes the 4-bit weight.
NATIVE_UNITS = {
    "rtx50": {"nvfp4": FP4, "float8_e4m3fn": FP8, "mxfp8": FP8, "int8_tensorwise": INT8, "asym_w4a8_int8": INT8,
              "convrot_w4a4": INT8},
    "rtx40": {"float8_e4m3fn": FP8, "int8_tensorwise": INT8, "asym_w4a8_int8": INT8, "convrot_w4a4": INT4},
    "rtx30": {"int8_tensorwise": INT8, "asym_w4a8_int8": INT8, "convrot_w4a4": INT4},
    "rtx20": {"int8_tensorwise": INT8, "asym_w4a8_int8": INT8, "convrot_w4a4": INT4},
    "rdna": {"int8_tensorwise": INT8, "asym_w4a8_int8": INT8, "convrot_w4a4": INT4},
    "arc": {"int8_tensorwise": INT8, "asym_w4a8_int8": INT8},
    "cpu": {"int8_tensorwise": INT8, "asym_w4a8_int8": INT8},
}
E5M2_FAILS = "CUDA has no product of two E5M2 matrices, and ComfyUI quantizes the input to E5M2 too: use full precision"
IGNORED = "ComfyUI multiplies INT formats in INT8 or INT4 even where full precision is asked for"
DECODED = "ComfyUI-GGUF decodes the weight and multiplies in 16 bit"
ASKED = "full precision is asked for: the weight is dequantized, the product is in 16 bit"
NEEDS = {"nvfp4": "FP4 units came with RTX 50", "mxfp8": "MXFP8 units came with RTX 50",
         "float8_e4m3fn": "FP8 units came with RTX 40", "float8_e5m2": "FP8 units came with RTX 40"}
NOTES = {
    ("rtx50", "convrot_w4a4"): "no INT4 units: INT8 takes the 4-bit weight, and the input stays in 8 bit",
    ("rtx40", "convrot_w4a4"): "INT4 tensor cores, the input quantized to 4 bit; on H100 INT8",
    ("rtx20", "asym_w4a8_int8"): "INT8 tensor cores; the weight is unpacked by plain torch at every call",
    ("rdna", "int8_tensorwise"): "INT8 by comfy-kitchen's HIP kernels, RDNA 3 and 4; RDNA 2 has no matrix units",
    ("rdna", "asym_w4a8_int8"): "INT8 by comfy-kitchen's HIP kernels, RDNA 3 and 4; RDNA 2 has no matrix units",
    ("rdna", "convrot_w4a4"): "INT4 by comfy-kitchen's HIP kernels, RDNA 3 and 4, the input quantized to 4 bit",
    ("rdna", "float8_e4m3fn"): "RDNA 3 has no FP8 units; RDNA 4 (RX 9000) multiplies it natively with ROCm 6.4 and torch 2.7",
    ("rdna", "float8_e5m2"): "RDNA 3 has no FP8 units; RDNA 4 (RX 9000) multiplies it natively with ROCm 6.5",
    ("arc", "int8_tensorwise"): "INT8 by plain torch, from torch 2.9",
    ("arc", "asym_w4a8_int8"): "INT8 by plain torch, from torch 2.9; the weight is unpacked at every call",
    ("cpu", "int8_tensorwise"): "INT8 by plain torch",
    ("cpu", "asym_w4a8_int8"): "INT8 by plain torch; the weight is unpacked at every call",
}
UNITS_SAID = {FP4: "FP4 tensor cores", FP8: "FP8 tensor cores", INT8: "INT8 tensor cores, the input quantized row by row",
              INT4: "INT4 tensor cores, the input quantized to 4 bit"}
W4A4_SLOW = "no INT4 kernel here: multiplied in 16 bit, with the input still rounded to 4 bit: less quality, no speed"


@dataclass(frozen=True)
class Verdict:
    """What becomes of a layer. word: NATIVE, EMULATED, FAILS or NOT_LOADABLE; unit: one of UNITS; reason: in words."""

    word: str
    unit: str
    reason: str


def judge(form: str, card: str, *, full_precision: bool = False) -> Verdict:
    """What a layer in a format becomes on a class of card in ComfyUI 0.33, with a torch built for CUDA 13 where it is NVIDIA's.

    form: a QUANT_ALGOS name, a type of GGUF, bf16, fp16, fp32 or KEEP; card: a key of CARDS. Raises KeyError for another card,
    ValueError for another format.
    """
    units = NATIVE_UNITS[card]
    if form in PLAIN:
        return Verdict(NATIVE, SIXTEEN, "not quantized: cast to 16 bit" if form == "fp32" else "not quantized")
    if form in BLOCK_TYPES:
        return Verdict(EMULATED, SIXTEEN, DECODED)
    if form not in AFTER:
        raise ValueError(f"format: expected one of {', '.join([*AFTER, *sorted(PLAIN)])}, found {form}")
    if form in FLOATS and full_precision:
        return Verdict(EMULATED, SIXTEEN, ASKED)
    if form == "float8_e5m2" and "float8_e4m3fn" in units:
        return Verdict(FAILS, SIXTEEN, E5M2_FAILS)
    if form not in units:
        reason = W4A4_SLOW if form in INTS else f"{NOTES.get((card, form), NEEDS[form])}: dequantized, multiplied in 16 bit"
        return Verdict(EMULATED, SIXTEEN, reason)
    reason = NOTES.get((card, form), UNITS_SAID[units[form]])
    return Verdict(NATIVE, units[form], f"{reason}; {IGNORED}" if full_precision else reason)


def native_formats(card: str) -> tuple[str, ...]:
    """Quantized formats that a class of card multiplies natively: what a size budget may choose from, besides KEEP."""
    return tuple(NATIVE_UNITS[card])


def newest(forms: set[str]) -> str | None:
    """Which ComfyUI a file needs that holds several formats; None: every one."""
    floors = sorted((AFTER[form] for form in forms if form in AFTER), key=lambda text: [int(part) for part in text.split(".")])
    return f"ComfyUI newer than {floors[-1]}" if floors else None
