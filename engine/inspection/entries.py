"""What the JSON entry of a quantized layer may say (ComfyUI comfy/ops.py, _load_quantized_module; comfy_kitchen/tensor/*.py).

`convrot_groupsize` columns are rotated together by a Hadamard matrix that is a power of the 4 x 4 one; `group_size` columns of
asym_w4a8_int8 share a scale. ComfyUI reads both at the top level or under `params`.
"""
from collections.abc import Iterator

DEFAULTS = {"group_size": 16, "convrot_groupsize": 256}


def setting(settings: dict, name: str, default: object = None):
    """A value of the entry, which may also stand one level deeper under `params`."""
    params = settings.get("params")
    return settings.get(name, params.get(name, default) if isinstance(params, dict) else default)


def whole(settings: dict, name: str) -> int:
    """A size as ComfyUI takes it, by its default where nothing is said; 0 where that is no number."""
    try:
        return int(setting(settings, name, DEFAULTS[name]))
    except (TypeError, ValueError, OverflowError):
        return 0


def faults(settings: dict, form: str, columns: int) -> Iterator[tuple[str, str]]:
    """(severity, text) of each wrong value. form: a format that ComfyUI knows; columns: of the weight, unpacked."""
    flag = settings.get("full_precision_matrix_mult", False)
    if not isinstance(flag, bool):
        yield "warning", f"full_precision_matrix_mult: expected true or false, found {flag!r}, taken as {bool(flag)}"
    sizes = {"asym_w4a8_int8": ("convrot_groupsize", "group_size"), "convrot_w4a4": ("convrot_groupsize",)}.get(form, ())
    if form == "int8_tensorwise" and setting(settings, "convrot"):
        sizes = ("convrot_groupsize",)
    for name in sizes:
        size, is_rotation = whole(settings, name), name == "convrot_groupsize"
        if size < 1 or columns % size or not (_is_power_of_4(size) if is_rotation else _is_group(size)):
            rule = "a power of 4 that" if is_rotation else "4, 8 or a multiple of 16 that"
            yield "error", f"{name}: expected {rule} divides {columns} columns, found {setting(settings, name)!r}"
    product = setting(settings, "linear_dtype", "int4")
    if form == "convrot_w4a4" and product not in ("int4", "int8"):
        yield "error", f"linear_dtype: expected int4 or int8, found {product!r}"


def _is_power_of_4(size: int) -> bool:
    return size & (size - 1) == 0 and size.bit_length() % 2 == 1


def _is_group(size: int) -> bool:
    return size in (4, 8) or size % 16 == 0
