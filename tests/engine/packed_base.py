"""A tiny base in packed formats, made by comfy-kitchen, and what comfy-kitchen reads back from it: for tests of what reads one."""
import functools
import json

import torch
from comfy_kitchen.tensor import (
    AsymW4A8Int8Layout,
    TensorCoreConvRotW4A4Layout,
    TensorCoreMXFP8Layout,
    TensorCoreNVFP4Layout,
    TensorWiseINT8Layout,
)
from wan22_master.engine.bases.source import open_source
from wan22_master.tests.engine.stored_base import saved, wan

DIM = 256
SHAPES = {"blocks.0.self_attn.q": (DIM, DIM), "blocks.0.ffn.0": (3 * 128 + 64, DIM), "blocks.1.ffn.2": (DIM, 768)}
# kind -> layout of comfy-kitchen, how it quantizes, what the layer's JSON says besides
KINDS = {
    "nvfp4": (TensorCoreNVFP4Layout, {}, {"format": "nvfp4"}),
    "mxfp8": (TensorCoreMXFP8Layout, {}, {"format": "mxfp8"}),
    "int8 tensor": (TensorWiseINT8Layout, {}, {"format": "int8_tensorwise"}),
    "int8 row": (TensorWiseINT8Layout, {"per_channel": True}, {"format": "int8_tensorwise"}),
    "int8 convrot": (TensorWiseINT8Layout, {"per_channel": True, "convrot": True},
                     {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256}),
    "int8 convrot, nested": (TensorWiseINT8Layout, {"per_channel": True, "convrot": True},
                             {"format": "int8_tensorwise", "params": {"convrot": True}}),
    "convrot_w4a4": (TensorCoreConvRotW4A4Layout, {}, {"format": "convrot_w4a4", "convrot_groupsize": 256}),
    "asym_w4a8_int8": (AsymW4A8Int8Layout, {}, {"format": "asym_w4a8_int8", "group_size": 16, "convrot_groupsize": 256}),
    "asym_w4a8_int8, linear": (AsymW4A8Int8Layout, {"codebook": False}, {"format": "asym_w4a8_int8"}),
}
ROTATED = ("convrot", "asym")


@functools.cache
def made(kind, shape, seed=3):
    """Suffix -> stored tensor, and what comfy-kitchen reads back from them in float32. Made once: they must not be modified."""
    layout, how, _ = KINDS[kind]
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.03
    weight[:, 3] *= 8
    codes, params = layout.quantize(weight, **how)
    return layout.state_dict_tensors(codes, params), layout.dequantize(codes, params)


def plain():
    return {key: value for key, value in wan(torch.bfloat16).items() if not key.startswith("blocks")}


def quant(setting):
    return torch.tensor(list(json.dumps(setting).encode()), dtype=torch.uint8)


def packed(kinds, shapes=None, *, says=True):
    """A base whose layers are in these formats, in turn; and what each weight is."""
    tensors, wanted = plain(), {}
    for number, (layer, shape) in enumerate((shapes or SHAPES).items()):
        kind = kinds[number % len(kinds)]
        stored, wanted[f"{layer}.weight"] = made(kind, shape, number)
        tensors |= {f"{layer}.weight{suffix}": tensor for suffix, tensor in stored.items()}
        if says:
            tensors[f"{layer}.comfy_quant"] = quant(KINDS[kind][2])
    return tensors, wanted


def opened(folder, tensors, metadata=None):
    return open_source(saved(folder / "base.safetensors", tensors, metadata), allow_lossy=True)


def assert_equal(found, wanted, kind):
    """Bit for bit; but a rotation back is the same sum of 256 in another order: sqrt(256) roundings of 2**-24 of the largest."""
    if any(word in kind for word in ROTATED):
        assert (found - wanted).abs().max() <= 2.0 ** -20 * wanted.abs().max()
    else:
        assert torch.equal(found, wanted)
