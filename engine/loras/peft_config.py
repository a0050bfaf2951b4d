"""PEFT's configuration of a LoRA: in the metadata (diffusers from 0.35 on) or in adapter_config.json beside the file.

Read are r, lora_alpha, use_rslora, and rank_pattern and alpha_pattern, which give modules other values by the end of a name; LoHa
and LoKr call it alpha, and scale by alpha / r (PEFT 0592228, tuners/loha and lokr/layer.py). Kinds without an alpha, such as OFT
and BOFT, say nothing here; what OFT needs is read by adapters/peft_oft.py. diffusers writes one configuration for each expert:
`transformer.r` and `transformer_2.r`.
"""
import math
import os
import re
import reprlib
from dataclasses import dataclass

from .. import strict_json
from ..bases.prefixes import LOW, take_apart
from ..errors import LoraError

METADATA, SIBLING = "lora_adapter_metadata", "adapter_config.json"
FIRST, SECOND = "transformer", "transformer_2"     # diffusers' names of the high-noise and the low-noise expert
PEFT_NAME = "adapter_model.safetensors"            # PEFT, SAFETENSORS_WEIGHTS_NAME
LORA, LYCORIS = "LORA", ("LOHA", "LOKR")           # peft_type
LARGEST = 1 << 20                                  # bytes of a configuration
SIMPLE = re.compile(r"\^?[A-Za-z0-9_.]+")          # a module's name or its end; "^" binds it to the beginning


@dataclass(frozen=True)
class Adapter:
    """PEFT's configuration of one LoRA file. where: METADATA or SIBLING; patterns as written, dots unescaped; kind: peft_type."""

    where: str
    rank: int
    alpha: float
    is_rs: bool
    ranks: dict[str, int]
    alphas: dict[str, float]
    kind: str = LORA


def read_adapters(path: str, metadata: dict[str, str]) -> dict[str, Adapter]:
    """The configurations of the LoRA at `path`, by the part of the model they are for: FIRST, SECOND, or "" for the whole file.

    Raises LoraError naming file and field.
    """
    name = os.path.basename(path)
    if METADATA in metadata:
        return _from_json(f"{name}: metadata {METADATA}", METADATA, metadata[METADATA].encode())
    try:
        beside = find_beside(path)
        if beside is None:
            return {}
        with open(beside, "rb") as file:
            text = file.read(LARGEST + 1)
    except OSError as cause:
        raise LoraError(f"{name}: {SIBLING} beside it cannot be read: {cause.strerror}; check its rights, or remove it") from cause
    return _from_json(f"{name}: {SIBLING} beside it", SIBLING, text)


def find_beside(path: str) -> str | None:
    """Path of the configuration in the folder of the LoRA at `path`, None where there is none. Raises OSError.

    It counts when the LoRA has PEFT's own name or is the only one in its folder: else it may be another one's.
    """
    beside = os.path.join(os.path.dirname(path), SIBLING)
    is_its_own = os.path.isfile(beside) and (os.path.basename(path) == PEFT_NAME or _companions(path) == 1)
    return beside if is_its_own else None


def choose_adapter(adapters: dict[str, Adapter], module: str) -> Adapter | None:
    """The configuration that holds for a module of the file."""
    is_low = take_apart(module).prefix.expert == LOW
    return adapters.get("") or adapters.get(SECOND if is_low else FIRST)


def _companions(path: str) -> int:
    return sum(name.endswith(".safetensors") for name in os.listdir(os.path.dirname(path) or "."))


def _from_json(label: str, where: str, text: bytes) -> dict[str, Adapter]:
    try:
        if len(text) > LARGEST:
            raise ValueError(f"more than {LARGEST} bytes")
        found = strict_json.parse(text)
    except ValueError as cause:
        raise LoraError(f"{label}: expected PEFT's configuration as JSON, found: {str(cause)[:99]}; get the file again") from cause
    owners = [owner for owner in (FIRST, SECOND) if any(key.startswith(f"{owner}.") for key in found)] or [""]
    told = {owner: _adapter(f"{label}: ", where, found, f"{owner}." if owner else "") for owner in owners}
    return {owner: adapter for owner, adapter in told.items() if adapter}


def _adapter(label: str, where: str, found: dict, prefix: str) -> Adapter | None:
    """The configuration under one prefix; None where it is of a text encoder, or of a kind of adapter that has no alpha."""
    said = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}
    kind = said.get("peft_type") or LORA           # configurations by hand and old ones do not say it
    if not isinstance(kind, str):
        raise _wrong(f"{label}{prefix}peft_type", "a kind of adapter", kind)
    field = "alpha" if kind in LYCORIS else "lora_alpha"
    if not ({"r", field} if kind in (LORA, *LYCORIS) else {field}) & said.keys():
        return None
    if said.get("use_khatri_rao") is True or said.get("init_weights") == "abba":
        raise _wrong(f"{label}{prefix}init_weights", "a LoHa that is scaled by alpha / r", "ABBA, which has two ranks")
    rank, alpha = (_number(f"{label}{prefix}{key}", said.get(key)) for key in ("r", field))
    is_rs = said.get("use_rslora") or False
    if not isinstance(is_rs, bool):
        raise _wrong(f"{label}{prefix}use_rslora", "true or false", is_rs)
    ranks, alphas = (_patterns(f"{label}{prefix}{key}", said.get(key)) for key in ("rank_pattern", "alpha_pattern"))
    return Adapter(where, rank, alpha, is_rs, ranks, alphas, kind)


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
