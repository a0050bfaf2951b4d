"""How merged and extracted LoRAs are spelled: `diffusion_model.`, lora_A and lora_B without alpha (so alpha is the rank), `.diff`.

ComfyUI 0.33 applies every such key (comfy/lora.py): a modulation as `blocks.N.modulation.diff`, a bias as `.diff_b`; factors of a
convolution have its kernel in lora_A and ones in lora_B, as PEFT stores them.
"""
import math

import torch

from ..specs import TensorSpec
from .lora_writer import LoraWriter
from .low_rank import Fit

PREFIX = "diffusion_model."


def names_of(key: str) -> tuple[str, str]:
    """(module name, suffix of a whole difference) of a model's key."""
    return PREFIX + key.removesuffix(".weight").removesuffix(".bias"), ".diff_b" if key.endswith(".bias") else ".diff"


def is_matrix(key: str, shape: tuple[int, ...]) -> bool:
    """Whether a delta of this tensor can be stored as factors."""
    return key.endswith(".weight") and len(shape) > 1


def is_small(shape: tuple[int, ...], rank: int) -> bool:
    """Whether factors of this rank would be no smaller than the tensor itself, which is exact."""
    out, into = shape[0], math.prod(shape[1:])
    return rank * (out + into) >= out * into


def pair_specs(key: str, shape: tuple[int, ...], rank: int, dtype: torch.dtype) -> dict[str, TensorSpec]:
    """Names and largest shapes of the factors of one tensor."""
    module, ones = names_of(key)[0], (1,) * (len(shape) - 2)
    return {f"{module}.lora_A.weight": TensorSpec((rank, *shape[1:]), dtype),
            f"{module}.lora_B.weight": TensorSpec((shape[0], rank, *ones), dtype)}


def whole_spec(key: str, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, TensorSpec]:
    """Name and shape of one whole difference."""
    return {"".join(names_of(key)): TensorSpec(shape, dtype)}


def add_pair(writer: LoraWriter, key: str, shape: tuple[int, ...], fit: Fit) -> Fit:
    """Write the factors of one tensor; returns `fit`."""
    module, ones = names_of(key)[0], (1,) * (len(shape) - 2)
    writer.add(f"{module}.lora_A.weight", fit.down.reshape(-1, *shape[1:]))
    writer.add(f"{module}.lora_B.weight", fit.up.reshape(shape[0], -1, *ones))
    return fit


def add_whole(writer: LoraWriter, key: str, delta: torch.Tensor) -> Fit:
    """Write a whole difference, float64, in the file's dtype; returns what was lost."""
    stored = delta.to(writer.save.torch_dtype)
    writer.add("".join(names_of(key)), stored)
    lost = (stored.double() - delta).square().sum().item()
    return Fit(stored.reshape(-1, 1), stored.new_empty(0, 1), delta.square().sum().item(), lost)
