"""Finished files as the safetensors library and comfy-kitchen see them: which layer has which format, and what its weight is."""
import json

import torch
from comfy_kitchen.tensor import (
    AsymW4A8Int8Layout,
    TensorCoreConvRotW4A4Layout,
    TensorCoreFP8Layout,
    TensorCoreMXFP8Layout,
    TensorCoreNVFP4Layout,
    TensorWiseINT8Layout,
)

Tensors = dict[str, torch.Tensor]
# What is in a file beside the weights that a plan predicts: ComfyUI's own remarks on a layer.
REMARKS = (".comfy_quant", ".input_scale")


def settings(tensors: Tensors) -> dict[str, dict]:
    """Layer -> JSON of its `comfy_quant`."""
    return {key.removesuffix(".comfy_quant"): json.loads(bytes(tensor.tolist())) for key, tensor in tensors.items()
            if key.endswith(".comfy_quant")}


def formats(tensors: Tensors) -> dict[str, str]:
    """Layer -> format of all that is quantized."""
    return {layer: setting["format"] for layer, setting in settings(tensors).items()}


def data_bytes(tensors: Tensors) -> int:
    """Of all tensors but the remarks."""
    return sum(tensor.numel() * tensor.itemsize for key, tensor in tensors.items() if not key.endswith(REMARKS))


def decode(tensors: Tensors, layer: str, shape: tuple[int, ...]) -> torch.Tensor:
    """(out, in) float32: the weight as comfy-kitchen reads it; as it is when it is not quantized."""
    codes, setting = tensors[f"{layer}.weight"], settings({f"{layer}.comfy_quant": tensors[f"{layer}.comfy_quant"]})[layer] \
        if f"{layer}.comfy_quant" in tensors else None
    if setting is None:
        return codes.float()
    return decoded(setting, {key[len(layer) + 7:]: tensor for key, tensor in tensors.items() if key.startswith(f"{layer}.weight")},
                    shape)[:shape[0], :shape[1]]


def decoded(setting: dict, parts: Tensors, shape: tuple[int, ...]) -> torch.Tensor:
    """A weight from its stored tensors by suffix, padding included. setting: what its `comfy_quant` says."""
    name, common = setting["format"], {"orig_dtype": torch.float32, "orig_shape": shape}
    if name == "nvfp4":
        layout, params = TensorCoreNVFP4Layout, {"scale": parts["_scale_2"], "block_scale": parts["_scale"]}
    elif name == "asym_w4a8_int8":
        layout, params = AsymW4A8Int8Layout, {"scale": parts["_s_rel"], "s_channel": parts["_s_channel"],
                                              "codebook": parts["_codebook"]}
    else:
        layout = {"float8_e4m3fn": TensorCoreFP8Layout, "float8_e5m2": TensorCoreFP8Layout, "mxfp8": TensorCoreMXFP8Layout,
                  "int8_tensorwise": TensorWiseINT8Layout, "convrot_w4a4": TensorCoreConvRotW4A4Layout}[name]
        params = {"scale": parts["_scale"], **({"convrot": True} if setting.get("convrot") else {})}
    return layout.dequantize(parts[""], layout.Params(**params, **common))


def rounded(weight: torch.Tensor, name: str) -> tuple[Tensors, torch.Tensor]:
    """(suffix -> stored tensor, the weight read back in float32) as comfy-kitchen itself quantizes, rounding to nearest."""
    layout, how = {"nvfp4": (TensorCoreNVFP4Layout, {}), "mxfp8": (TensorCoreMXFP8Layout, {}),
                   "float8_e4m3fn": (TensorCoreFP8Layout, {}),
                   "float8_e5m2": (TensorCoreFP8Layout, {"dtype": torch.float8_e5m2}),
                   "int8_tensorwise": (TensorWiseINT8Layout, {"per_channel": True, "convrot": True}),
                   "convrot_w4a4": (TensorCoreConvRotW4A4Layout, {}), "asym_w4a8_int8": (AsymW4A8Int8Layout, {})}[name]
    codes, params = layout.quantize(weight, **how)
    return layout.state_dict_tensors(codes, params), layout.dequantize(codes, params)


# What ComfyUI's loader has to be told of a layer besides its format, when comfy-kitchen quantized it as `rounded` does.
EXTRAS = {"int8_tensorwise": {"convrot": True, "convrot_groupsize": 256}, "convrot_w4a4": {"convrot_groupsize": 256},
          "asym_w4a8_int8": {"group_size": 16, "convrot_groupsize": 256}}


def quantized(weights: Tensors, layers: dict[str, str]) -> Tensors:
    """A file's tensors with these layers in these formats, by comfy-kitchen."""
    found = dict(weights)
    for layer, name in layers.items():
        parts, _ = rounded(found.pop(f"{layer}.weight").float(), name)
        found |= {f"{layer}.weight{suffix}": tensor for suffix, tensor in parts.items()}
        said = json.dumps({"format": name, **EXTRAS.get(name, {})}).encode()
        found[f"{layer}.comfy_quant"] = torch.tensor(list(said), dtype=torch.uint8)
    return found
