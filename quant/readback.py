"""Rows of a stored weight as ComfyUI will see them: decoded by comfy-kitchen, or, GGUF's blocks, by the gguf library, never by this
package's own `dequantize`.

The independent check of a file that was written. The arithmetic is comfy-kitchen's eager code, the one that runs wherever torch
does, with float32 results (`comfy_kitchen.backends.eager`): a mistake that an encoder and its decoder here had in common, as a
scale inverted or a nibble on the wrong side, shows up against it. Only the wanted rows are read: where scales are swizzled, the 128
rows of their tiles are fetched and set out plain by comfy-kitchen's `from_blocked`, and the wanted ones packed again for its code.
"""
from collections.abc import Callable

import torch
from comfy_kitchen.backends import eager
from comfy_kitchen.float_utils import from_blocked, to_blocked

from .gguf.families import SIZES

Fetch = Callable[[str, int | None, int | None], torch.Tensor]
Parts = dict[str, torch.Tensor]


def decode_rows(form, shape: tuple[int, ...], rows: list[int], fetch: Fetch) -> torch.Tensor:
    """Some rows of a stored weight.

    form: how it is stored, one of FORMATS. shape: of the weight, without padding. rows: row numbers of the weight, in any order.
    fetch(suffix, first, stop): the stored rows [first, stop) of that suffix's tensor; with None, None the whole tensor, asked of
    those without rows only. CPU tensors in the dtypes of `form.outputs`, or their bytes as uint8.
    Returns (len(rows), in_features) float32, in the order of `rows`. Raises ValueError on a row that the weight does not have, and
    on a format that comfy-kitchen does not decode.
    """
    wrong = [row for row in rows if not 0 <= row < shape[0]]
    if wrong or not rows:
        raise ValueError(f"expected row numbers of a weight of {shape[0]} rows, got {wrong[:3] or rows}")
    if form.NAME in PLAIN:
        return _fetched(fetch, "", rows, 1).view(form.STORED).float()
    if form.NAME in SIZES:
        return _blocks(form.NAME, _fetched(fetch, "", rows, 1))
    if form.NAME not in DECODERS:
        raise ValueError(f"{form.NAME}: expected one of {', '.join((*PLAIN, *DECODERS))}; this check cannot read it")
    parts = {}
    for suffix, (_, dtype) in form.outputs(shape).items():
        group = form.GROUPS.get(suffix, 1)
        found = fetch(suffix, None, None) if suffix in form.CONSTANTS else _fetched(fetch, suffix, rows, group)
        parts[suffix] = found.view(dtype)
    return DECODERS[form.NAME](parts, form.comfy_quant(full_precision=False))[:, :shape[1]]


def _fetched(fetch: Fetch, suffix: str, rows: list[int], group: int) -> torch.Tensor:
    """Stored rows in the order of `rows`, scales in plain order. Whole groups, of which a stored tensor has a whole number, are
    fetched, neighbouring ones at once."""
    wanted, found = sorted({row // group for row in rows}), {}
    starts = [place for place, number in enumerate(wanted) if not place or wanted[place - 1] != number - 1]
    for start, end in zip(starts, [*starts[1:], len(wanted)], strict=True):
        first = wanted[start] * group
        tensor = fetch(suffix, first, (wanted[end - 1] + 1) * group)
        if group > 1:
            tensor = from_blocked(tensor.view(torch.uint8), *tensor.shape)
        found |= {row: tensor[row - first] for row in rows if first <= row < first + len(tensor)}
    return torch.stack([found[row].view(torch.uint8) if group > 1 else found[row] for row in rows])


def _blocks(name: str, stored: torch.Tensor) -> torch.Tensor:
    """Rows of GGUF's blocks. The library gives float32, and inf where a file holds it."""
    from gguf import GGMLQuantizationType, quants  # here: only GGUF files need it
    return torch.from_numpy(quants.dequantize(stored.numpy(), GGMLQuantizationType[name]))


def _blocked(scales: torch.Tensor, blocks: int) -> torch.Tensor:
    """Plain scales of some rows, swizzled as the kernel expects them."""
    return to_blocked(scales.view(torch.uint8)[:, :blocks], flatten=False).view(scales.dtype)


def _fp8(parts: Parts, stored_as: dict) -> torch.Tensor:
    return eager.dequantize_per_tensor_fp8(parts[""], parts["_scale"], torch.float32)


def _mxfp8(parts: Parts, stored_as: dict) -> torch.Tensor:
    return eager.dequantize_mxfp8(parts[""], _blocked(parts["_scale"], parts[""].shape[1] // 32), torch.float32)


def _nvfp4(parts: Parts, stored_as: dict) -> torch.Tensor:
    scales = _blocked(parts["_scale"], parts[""].shape[1] // 8)                # two codes to a byte, 16 to a block
    return eager.dequantize_nvfp4(parts[""], parts["_scale_2"], scales, torch.float32)


def _int8(parts: Parts, stored_as: dict) -> torch.Tensor:
    if stored_as.get("convrot"):
        return eager.dequantize_int8_convrot_weight(parts[""], parts["_scale"], stored_as.get("convrot_groupsize", 256))
    return eager.dequantize_int8_simple(parts[""], parts["_scale"])


def _w4a4(parts: Parts, stored_as: dict) -> torch.Tensor:
    return eager.dequantize_convrot_w4a4_weight(parts[""], parts["_scale"], stored_as.get("convrot_groupsize", 256))


def _w4a8(parts: Parts, stored_as: dict) -> torch.Tensor:
    return eager.dequantize_w4a8_int8_weight(
        parts[""], parts["_s_rel"], parts["_s_channel"], parts.get("_codebook"), group_size=stored_as.get("group_size", 16),
        convrot_groupsize=stored_as.get("convrot_groupsize", 256), output_dtype=torch.float32)


PLAIN = ("bf16", "fp16", "fp32", "BF16", "F16", "F32")
# The defaults of the sizes above are those of ComfyUI's loader (comfy/ops.py, mixed_precision_ops).
DECODERS: dict[str, Callable[[Parts, dict], torch.Tensor]] = {
    "float8_e4m3fn": _fp8, "float8_e5m2": _fp8, "mxfp8": _mxfp8, "nvfp4": _nvfp4, "int8_tensorwise": _int8,
    "convrot_w4a4": _w4a4, "asym_w4a8_int8": _w4a8}
