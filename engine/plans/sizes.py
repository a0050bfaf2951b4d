"""Bytes of an expert under a plan, known from shapes alone.

    bytes of a quantized layer = sum over format.outputs(shape) of numel * itemsize        bytes of the rest = the caller's rule

Left out, together under 0.001 % of a 14B expert: the header, the `comfy_quant` objects, input scales of 4 bytes.
"""
from collections.abc import Callable, Iterable, Mapping

from ..precision import stored
from ..specs import TensorSpec
from .plan import KEEP, block_linears


def layer_bytes(form, shape: tuple[int, ...]) -> int:
    """Bytes that a format stores for a weight of this shape. form: a format of quant. Raises ValueError for a shape that it cannot
    hold."""
    return sum(spec.nbytes for spec in stored(form, shape).values())


def rest_bytes(model: Mapping[str, TensorSpec], kept_bytes: Callable[[str], int]) -> int:
    """Bytes of everything that is never quantized: what a size budget cannot change."""
    linears = block_linears(model)
    return sum(kept_bytes(key) for key in model if key.removesuffix(".weight") not in linears or not key.endswith(".weight"))


def candidate_bytes(model: Mapping[str, TensorSpec], candidates: Iterable[str], forms: Mapping[str, object],
                    kept_bytes: Callable[[str], int]) -> dict[str, dict[str, int]]:
    """Layer -> candidate -> bytes, for every block linear. candidates: names of `forms`, and KEEP; one that cannot hold a layer's
    shape is left out there."""
    candidates = tuple(candidates)
    return {layer: {name: count for name in candidates
                    if (count := _bytes(name, f"{layer}.weight", spec, forms, kept_bytes)) is not None}
            for layer, spec in block_linears(model).items()}


def _bytes(name: str, key: str, spec: TensorSpec, forms, kept_bytes) -> int | None:
    """Of one layer; None where the format cannot hold it."""
    if name == KEEP:
        return kept_bytes(key)
    try:
        return layer_bytes(forms[name], spec.shape)
    except ValueError:
        return None
