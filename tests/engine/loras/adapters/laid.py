"""Drives `adapters.build` and what it returns as a merge would, tile by tile, so that an adapter is tested by itself."""

import torch
from safetensors.torch import save_file
from wan22_master.engine.loras.adapters import build
from wan22_master.engine.loras.delta import flat_shape
from wan22_master.engine.loras.dialects import Index, split
from wan22_master.engine.loras.lora import open_lora
from wan22_master.engine.loras.modules import Refused
from wan22_master.engine.specs import TensorSpec
from wan22_master.tests.engine.loras.adapters import cases

CPU = torch.device("cpu")


def index_of(shapes=None):
    shapes = {**cases.SHAPES, **cases.BIASES} if shapes is None else shapes
    return Index(shapes, {key: TensorSpec(shape, torch.bfloat16) for key, shape in shapes.items()})


def write(path, tensors, metadata=None):
    """A LoRA file by the safetensors library, opened."""
    whole = {key: tensor.contiguous().clone() for key, tensor in tensors.items()}
    save_file(whole, path, metadata)
    return open_lora(path)


def sort(lora, index):
    """(native layer, parts) of every module name of the file, in file order."""
    found = {}
    for key in lora.header.entries:
        module, part = split(key)
        found.setdefault(module, {})[part] = key
    return [(index.place(module, lora.dialect).layer, parts) for module, parts in found.items()]


def lay(lora, index, rs_lora=None):
    """(key of the base -> modules, refused key -> reason); every key of the file is in exactly one of them."""
    applied, refused = {}, {}
    for layer, parts in sort(lora, index):
        for result in build(lora, layer, parts, index, rs_lora=rs_lora):
            if isinstance(result, Refused):
                assert result.key not in refused
                refused[result.key] = result.reason
            else:
                applied.setdefault(result[0], []).append(result[1])
    used = {key for modules in applied.values() for module in modules for key in module.keys}
    assert used | refused.keys() == set(lora.header.entries)
    assert not used & refused.keys()
    return applied, refused


def tiles(rows, columns, height, width):
    """(rows, columns) of every tile."""
    return [
        ((top, min(top + height, rows)), slice(left, min(left + width, columns)))
        for top in range(0, rows, height)
        for left in range(0, columns, width)
    ]


def change_of(module, lora, weight, strength=1.0, tile=(9, 17)):
    """W' - W in float64, computed in float32 in tiles of that size."""
    rows, columns = flat_shape(weight.shape)
    flat = weight.float().reshape(rows, columns)
    loaded = module.load(lora, tuple(weight.shape), CPU)
    if module.form == "transform":
        merged = flat.clone()
        size = (rows, tile[1]) if loaded.whole else (tile[0], columns)
        for span, part in tiles(rows, columns, *size):
            loaded.apply(merged[span[0] : span[1], part], span, part, strength)
        return (merged.double() - flat.double()).reshape(weight.shape)
    sees = module.form == "base"
    if sees:
        spans = sorted({span for span, _ in tiles(rows, columns, tile[0], columns)})
        loaded.settle([loaded.observe(span, flat[span[0] : span[1]]) for span in spans])
    delta = torch.full_like(flat, torch.nan)
    for span, part in tiles(rows, columns, *tile):
        loaded.write(span, part, flat[span[0] : span[1]] if sees else None, delta[span[0] : span[1], part])
    return (strength * delta.double()).reshape(weight.shape)


def error(found, expected):
    """Relative to the expected change; 0 where both are nothing."""
    size = expected.norm().item()
    return (found - expected).norm().item() / size if size else found.norm().item()
