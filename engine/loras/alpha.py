"""What a LoRA's product of factors is multiplied by, and where alpha is said.

    delta = alpha / rank * up @ down           Hu et al. 2021, arXiv 2106.09685, section 4.1
    delta = alpha / sqrt(rank) * up @ down     rs-LoRA: Kalajdzievski 2023, arXiv 2312.03732; only where a configuration says so

The first that says it counts: the module's own alpha tensor; the file's metadata `lora_adapter_metadata` (diffusers, from 0.35 on,
writes no alpha tensors); `adapter_config.json` in the folder of a PEFT LoRA; else alpha is the rank. Both configurations are PEFT's
LoraConfig, or its LoHaConfig or LoKrConfig, which scale by alpha / rank too (peft_config.py).

Whether a LoRA is an rs-LoRA leaves no trace in its tensors. LyCORIS stores such an alpha times sqrt(rank), so the plain formula is
right for it. So the configuration decides, or the user (`match`), and nothing is guessed from names of keys.
"""
import math
from typing import TYPE_CHECKING

from ..bases.prefixes import take_apart
from ..errors import LoraError
from .peft_config import LARGEST, METADATA, PEFT_NAME, SIBLING, Adapter

if TYPE_CHECKING:
    from .lora import LoraFile

__all__ = ["ABSENT", "LARGEST", "METADATA", "OWN", "PEFT_NAME", "SIBLING", "factor"]
OWN, ABSENT = "alpha tensors", "none given, so alpha is the rank"


def factor(lora: "LoraFile", module: str, alpha: str | None, rank: int) -> tuple[float, str]:
    """(number for up @ down, where its alpha is from) of one module. alpha: key of its alpha tensor, of any dtype, or None.

    Raises LoraError when alpha is no number, or the configuration does not say what holds for this module.
    """
    adapter = None if alpha is not None else lora.adapter_of(module)
    told = rank if adapter is None else _value(lora, adapter, ("rank_pattern", adapter.ranks), module, adapter.rank)
    if told != rank and adapter.where == METADATA:
        expected = f"expected {rank}, the rank of {module}"
        raise LoraError(f"{lora.name}: metadata {METADATA}: r: {expected}, found {told}; get the file as it was trained")
    if alpha is not None:
        value, where = _stored(lora, alpha), OWN
    elif adapter is None or told != rank:
        value, where = rank, ABSENT if adapter is None else f"{ABSENT} ({SIBLING} is for rank {told})"
    else:
        value, where = _value(lora, adapter, ("alpha_pattern", adapter.alphas), module, adapter.alpha), adapter.where
    is_rs = where in (METADATA, SIBLING) and adapter.is_rs
    return value / (math.sqrt(rank) if is_rs else rank), f"{where}, rs-LoRA" if is_rs else where


def _stored(lora: "LoraFile", alpha: str) -> float:
    value = lora.read(alpha).item()
    if not math.isfinite(value):
        remedy = "the file is damaged, download it again"
        raise LoraError(f"{lora.name}: {alpha}: expected a finite number, found {value}; {remedy}")
    return value


def _value(lora: "LoraFile", adapter: Adapter, patterns: tuple[str, dict], module: str, default: float) -> float:
    """The value of the first pattern that fits the module, as in PEFT's get_pattern_key, else the default."""
    field, table = patterns
    spelled = take_apart(module)
    if table and spelled.prefix.is_flat:
        expected = f"expected names with dots in the file, found {module}"
        raise LoraError(f"{lora.name}: {adapter.where}: {field}: {expected}; convert it to diffusion_model. names")
    name = spelled.name
    for pattern, value in table.items():
        if name == pattern.removeprefix("^") or name.endswith("." + pattern):
            return value
    return default
