"""What a LoRA's product of factors is multiplied by, and where alpha is said.

    delta = alpha / rank * up @ down           Hu et al. 2021, arXiv 2106.09685, section 4.1
    delta = alpha / sqrt(rank) * up @ down     rs-LoRA: Kalajdzievski 2023, arXiv 2312.03732; only where a configuration says so

The first that says it counts: the module's own alpha tensor; the file's metadata `lora_adapter_metadata` (diffusers, from 0.35 on,
writes no alpha tensors); `adapter_config.json` in the folder of a PEFT LoRA; else alpha is the rank. Both configurations are PEFT's
LoraConfig: r, lora_alpha, use_rslora, and rank_pattern and alpha_pattern, which give modules other values by the end of a name.
"""
import math
import os
import re
import reprlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import strict_json
from .errors import LoraError

if TYPE_CHECKING:
    from .lora import LoraFile

METADATA, SIBLING = "lora_adapter_metadata", "adapter_config.json"
OWN, ABSENT = "alpha tensors", "none given, so alpha is the rank"
PEFT_NAME = "adapter_model.safetensors"            # PEFT, SAFETENSORS_WEIGHTS_NAME
LARGEST = 1 << 20                                  # bytes of a configuration
PREFIX = re.compile(r"^(?:base_model\.model\.|diffusion_model\.|transformer\.)")
SIMPLE = re.compile(r"\^?[A-Za-z0-9_.]+")          # a module's name or its end; "^" binds it to the beginning


@dataclass(frozen=True)
class Adapter:
    """PEFT's configuration of one LoRA file. where: METADATA or SIBLING; patterns as written, dots unescaped."""

    where: str
    rank: int
    alpha: float
    is_rs: bool
    ranks: dict[str, int]
    alphas: dict[str, float]


def factor(lora: "LoraFile", module: str, alpha: str | None, rank: int) -> tuple[float, str]:
    """(number for up @ down, where its alpha is from) of one module. alpha: key of its alpha tensor, of any dtype, or None.

    Raises LoraError when alpha is no number, or the configuration does not say what holds for this module.
    """
    if alpha is not None:
        value = lora.read(alpha).item()
        if not math.isfinite(value):
            remedy = "the file is damaged, download it again"
            raise LoraError(f"{lora.name}: {alpha}: expected a finite number, found {value}; {remedy}")
        return value / rank, OWN
    adapter = lora.adapter
    if adapter is None:
        return 1.0, ABSENT
    told = _value(lora, adapter, ("rank_pattern", adapter.ranks), module, adapter.rank)
    if told != rank and adapter.where == SIBLING:
        return 1.0, f"{ABSENT} ({SIBLING} is for rank {told})"
    if told != rank:
        expected = f"expected {rank}, the rank of {module}"
        raise LoraError(f"{lora.name}: metadata {METADATA}: r: {expected}, found {told}; get the file as it was trained")
    value = _value(lora, adapter, ("alpha_pattern", adapter.alphas), module, adapter.alpha)
    return (value / math.sqrt(rank), f"{adapter.where}, rs-LoRA") if adapter.is_rs else (value / rank, adapter.where)


def _value(lora: "LoraFile", adapter: Adapter, patterns: tuple[str, dict], module: str, default: float) -> float:
    """The value of the first pattern that fits the module, as in PEFT's get_pattern_key, else the default."""
    field, table = patterns
    if table and module.startswith("lora_unet_"):
        expected = f"expected names with dots in the file, found {module}"
        raise LoraError(f"{lora.name}: {adapter.where}: {field}: {expected}; convert it to diffusion_model. names")
    name = PREFIX.sub("", module)
    for pattern, value in table.items():
        if name == pattern.removeprefix("^") or name.endswith("." + pattern):
            return value
    return default


def read_adapter(path: str, metadata: dict[str, str]) -> Adapter | None:
    """The configuration of the LoRA at `path`; None where there is none. Raises LoraError naming file and field.

    The file beside it counts when the LoRA has PEFT's own name or is the only one in its folder: else it may be another one's.
    """
    name = os.path.basename(path)
    if METADATA in metadata:
        return _from_json(f"{name}: metadata {METADATA}", METADATA, metadata[METADATA].encode())
    beside = os.path.join(os.path.dirname(path), SIBLING)
    try:
        if not os.path.isfile(beside) or (name != PEFT_NAME and _companions(path) > 1):
            return None
        with open(beside, "rb") as file:
            text = file.read(LARGEST + 1)
    except OSError as cause:
        raise LoraError(f"{name}: {SIBLING} beside it cannot be read: {cause.strerror}; check its rights, or remove it") from cause
    return _from_json(f"{name}: {SIBLING} beside it", SIBLING, text)


def _companions(path: str) -> int:
    return sum(name.endswith(".safetensors") for name in os.listdir(os.path.dirname(path) or "."))


def _from_json(label: str, where: str, text: bytes) -> Adapter | None:
    try:
        if len(text) > LARGEST:
            raise ValueError(f"more than {LARGEST} bytes")
        found = strict_json.parse(text)
    except ValueError as cause:
        raise LoraError(f"{label}: expected PEFT's configuration as JSON, found: {str(cause)[:99]}; get the file again") from cause
    prefix = "transformer." if any(key.startswith("transformer.") for key in found) else ""
    said = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
    if not {"r", "lora_alpha"} & said.keys():
        return None                                # of a text encoder, or another kind of adapter
    rank, alpha = (_number(f"{label}: {prefix}{key}", said.get(key)) for key in ("r", "lora_alpha"))
    is_rs = said.get("use_rslora") or False
    if not isinstance(is_rs, bool):
        raise _wrong(f"{label}: {prefix}use_rslora", "true or false", is_rs)
    ranks, alphas = (_patterns(f"{label}: {prefix}{key}", said.get(key)) for key in ("rank_pattern", "alpha_pattern"))
    return Adapter(where, rank, alpha, is_rs, ranks, alphas)


def _patterns(label: str, table: object) -> dict:
    if not isinstance(table, dict | None):
        raise _wrong(label, "numbers by module", table)
    plain = {pattern.replace("\\.", "."): value for pattern, value in (table or {}).items()}
    for pattern, value in plain.items():
        if not SIMPLE.fullmatch(pattern):
            raise _wrong(label, "names of modules or their ends, no other pattern is understood", pattern)
        _number(f"{label}: {pattern}", value)
    return plain


def _number(label: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _wrong(label, "a finite number", value)
    return value


def _wrong(label: str, expected: str, found: object) -> LoraError:
    return LoraError(f"{label}: expected {expected}, found {reprlib.repr(found)}; get the file again, or one with alpha tensors")
