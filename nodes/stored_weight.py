"""One weight of a MODEL as float32, whatever it is stored in: plain, quantized by comfy-kitchen, or GGUF.

The rounding that a quantized base has lost does not come back; nothing is added to it here.
"""
import dataclasses
import sys

import comfy.utils
import torch
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

CPU = torch.device("cpu")
ALGOS = {algo["comfy_tensor_layout"]: name for name, algo in QUANT_ALGOS.items()}
GGML_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def kind_of(weight: torch.Tensor) -> str:
    """How it is stored, in a word: a format by its name in QUANT_ALGOS, as `Source.formats` wants it."""
    if isinstance(weight, QuantizedTensor):
        return ALGOS.get(weight._layout_cls, weight._layout_cls)
    ggml = getattr(weight, "tensor_type", None)
    return f"GGUF {ggml.name}" if ggml is not None else str(weight.dtype).removeprefix("torch.")


def is_lossy(weight: torch.Tensor) -> bool:
    """Whether it has lost what a 16-bit weight would have."""
    ggml = getattr(weight, "tensor_type", None)
    return isinstance(weight, QuantizedTensor) or (weight.dtype.itemsize == 1 if ggml is None else ggml.name not in GGML_DTYPES)


def dtype_of(weight: torch.Tensor) -> torch.dtype:
    """Dtype of a tensor that stays unquantized: its own, bfloat16 for what is quantized."""
    ggml = getattr(weight, "tensor_type", None)
    if ggml is not None:
        return GGML_DTYPES.get(ggml.name, torch.bfloat16)
    return torch.bfloat16 if isinstance(weight, QuantizedTensor) else weight.dtype


def to_float32(weight: torch.Tensor) -> torch.Tensor:
    """A new float32 tensor on the CPU. A quantized one is dequantized in float32, not in the model's 16 bits."""
    if isinstance(weight, QuantizedTensor):
        params = dataclasses.replace(weight._params.to_device(CPU), orig_dtype=torch.float32)
        return QuantizedTensor(weight._qdata.to(CPU), weight._layout_cls, params).dequantize().float().clone()
    if getattr(weight, "tensor_type", None) is not None:
        # `weight.data` is not touched before: what it returns has lost its type. The module is ComfyUI-GGUF's, whatever its folder.
        codes = sys.modules[type(weight).__module__.rpartition(".")[0] + ".dequant"]
        return torch.Tensor(codes.dequantize_tensor(weight.to(CPU), torch.float32, torch.float32)).clone()
    return weight.detach().to(device=CPU, dtype=torch.float32, copy=True)


def base_weight(model, key: str) -> torch.Tensor:
    """The weight of `key` without patches, right also while this MODEL or another clone of it is loaded with patches in place.

    Object patches of this MODEL come first; then what the loaded clone has put aside: backups are shared by all clones.
    """
    if key in model.object_patches or key in model.object_patches_backup:
        return model.get_model_object(key)
    if key in model.hook_backup:
        return model.hook_backup[key][0]
    return model.backup[key].weight if key in model.backup else comfy.utils.get_attr(model.model, key)
