"""From what a file says of a packed layer to how its weight is read: the format object, the tensors, and whether they fit.

Settings stand in the layer's JSON, at its top or under "params"; a scale stored as bytes is looked at as the float it is (source:
ComfyUI comfy/ops.py, `_load_quantized_module`). nvfp4 and mxfp8 pad: rows to 16 and 32, of which a bias says how many are real, and
columns, which the file does not tell and which count as stored.
"""
from collections.abc import Mapping

import torch

from ...quant.formats import Options, form_of
from ..errors import SourceError
from ..header import Entry
from ..specs import NAMES, TensorSpec
from .packed import Packed, Part
from .quant_entries import Fetch
from .scaled import ROUTE, read_scale

# Logical columns in a stored one (source: the table of `packed`).
COLUMNS = {"nvfp4": 2, "mxfp8": 1, "int8_tensorwise": 1, "convrot_w4a4": 2, "asym_w4a8_int8": 2}
# What comfy/ops.py takes where a file does not say, and all that quant reads back.
SETTINGS = {"convrot_groupsize": 256, "group_size": 16}
CODEBOOK = "_codebook"
LINEAR = torch.arange(16, dtype=torch.float32) - 8.0  # values of a file without a codebook (comfy-kitchen, eager/w4a8_int8.py)
Entries = Mapping[str, tuple[int, Entry]]


def find_layout(path: str, layer: str, setting: Mapping, entries: Entries, fetch: Fetch) -> Packed:
    """How the weight of one packed layer is read.

    setting: what the file says of the layer; entries: native key -> number of its file and entry; fetch: the stored bytes of a key.
    Raises SourceError for a weight or scale that is missing or does not fit, and for a setting that is not read back.
    """
    where = f"{path}: {layer}.weight"
    if f"{layer}.weight" not in entries:
        raise SourceError(f"{where}: expected a weight in {setting['format']}, found no weight; {ROUTE}")
    stored = entries[f"{layer}.weight"][1].spec
    form = _form(where, layer, setting, entries)
    shape = _logical_shape(layer, form.NAME, stored, entries)
    try:
        expected = {suffix: TensorSpec(*wanted) for suffix, wanted in form.outputs(shape).items()}
    except ValueError as cause:
        raise SourceError(f"{where}: expected a shape that {form.NAME} holds, found {list(stored.shape)}; {ROUTE}") from cause
    parts, constants, nbytes = {}, {}, 0
    for suffix, wanted in expected.items():
        key = f"{layer}.weight{suffix}"
        if suffix == CODEBOOK and key not in entries:
            constants[suffix] = LINEAR
            continue
        if key not in entries:
            raise SourceError(f"{path}: {key}: expected as a part of {form.NAME}, found none; download it again")
        file, entry = entries[key]
        _check(path, key, entry.spec, wanted)
        nbytes += entry.nbytes
        if suffix in form.CONSTANTS:
            constants[suffix] = _constant(path, key, entry.spec, fetch).reshape(wanted.shape)
        else:
            parts[suffix] = Part(file, entry, wanted, form.GROUPS.get(suffix, 1))
    return Packed(form, TensorSpec(shape, torch.bfloat16), parts, constants, nbytes)


def _form(where: str, layer: str, setting: Mapping, entries: Entries):
    """The format object for what the layer's JSON says."""
    nested = setting.get("params") if isinstance(setting.get("params"), dict) else {}
    said = {**nested, **setting}
    name, scale = setting["format"], entries.get(f"{layer}.weight_scale")
    rotated = name in ("convrot_w4a4", "asym_w4a8_int8") or (name == "int8_tensorwise" and bool(said.get("convrot", False)))
    checked = {"convrot_groupsize": rotated, "group_size": name == "asym_w4a8_int8"}
    for field, wanted in SETTINGS.items():
        if checked[field] and said.get(field, wanted) != wanted:
            found = f"{name} with {field} {str(said[field])[:40]}"
            raise SourceError(f"{where}: expected {field} {wanted}, found {found}, which is not read back; {ROUTE}")
    per_tensor = scale is not None and scale[1].spec.numel == 1
    return form_of(name, Options(int8_scaling="convrot" if rotated else "tensor" if per_tensor else "row"))


def _logical_shape(layer: str, name: str, stored: TensorSpec, entries: Entries) -> tuple[int, ...]:
    """(out, in) without the padding that can be told; the stored shape where it is no matrix, which the format refuses."""
    if len(stored.shape) != 2:
        return stored.shape
    rows, columns = stored.shape
    bias = entries.get(f"{layer}.bias")
    if bias is not None and len(bias[1].spec.shape) == 1:
        rows = min(rows, bias[1].spec.numel)
    return rows, columns * COLUMNS[name]


def _check(path: str, key: str, found: TensorSpec, wanted: TensorSpec) -> None:
    """Raise SourceError where a stored tensor is none that the format takes.

    A single number may be stored as [] or [1], one a row as [N] or [N, 1], but not for int8_tensorwise, where [N] is one a column.
    """
    same = found.shape == wanted.shape or (found.numel == wanted.numel == 1)
    if not same and len(wanted.shape) == 1:
        same = found.shape == (*wanted.shape, 1)
    is_code = key.endswith(".weight") or wanted.dtype.itemsize == 1
    if is_code:
        fits = found.dtype == wanted.dtype or (not key.endswith(".weight") and found.dtype == torch.uint8)
    else:
        fits = found.dtype.is_floating_point and found.dtype.itemsize > 1
    if not same or not fits:
        expected = f"{NAMES[wanted.dtype]} {list(wanted.shape)}"
        raise SourceError(f"{path}: {key}: expected {expected}, found {NAMES[found.dtype]} {list(found.shape)}; {ROUTE}")


def _constant(path: str, key: str, spec: TensorSpec, fetch: Fetch) -> torch.Tensor:
    """A stored tensor without rows, float32: one scale above 0, or the values of a codebook."""
    if spec.numel == 1:
        return torch.tensor(read_scale(path, key, spec, fetch))
    values = torch.frombuffer(bytearray(fetch(key)), dtype=spec.dtype).float()
    if not values.isfinite().all():
        raise SourceError(f"{path}: {key}: expected finite values, found NaN or inf; the file is damaged, download it again")
    return values
