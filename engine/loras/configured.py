"""What a PEFT configuration outside the tensors says of a LoRA, as far as a module of its ledger rests on it."""
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..errors import LoraError
from .adapters.peft_oft import PeftOft
from .alpha import METADATA, OWN, SIBLING
from .peft_config import LYCORIS, Adapter

if TYPE_CHECKING:
    from .ledger import Ledger
    from .lora import LoraFile

APPLIED = (OWN, METADATA, SIBLING)                 # an alpha from one of these is in the factor


def configured(lora: "LoraFile", ledger: "Ledger") -> dict[str, dict]:
    """Settings by the part of the model, and "oft" for PEFT's rotations: two configurations make two different merges.

    {} where everything stands in the tensors. Raises LoraError when a configuration is malformed, or asks for what is not done.
    """
    where = {each.split(",")[0] for each in ledger.alpha_from}
    told = {name: asdict(one) for name, one in lora.adapters.items()} if where & {METADATA, SIBLING} else {}
    for module in (module for modules in ledger.applied.values() for module in modules):
        if isinstance(module, PeftOft) and module.alpha_from == SIBLING:
            told["oft"] = {"where": SIBLING, "terms": module.terms}
        if module.kind in ("loha", "lokr") and module.form != "comfyui" and module.alpha_from not in APPLIED:
            _check(lora, lora.adapter_of(module.keys[0]))
    return told


def _check(lora: "LoraFile", adapter: Adapter | None) -> None:
    """Raise LoraError where PEFT would scale a LoHa or LoKr that has no alpha tensor, and here it would be merged as it is."""
    if adapter and adapter.kind in LYCORIS and (adapter.alpha != adapter.rank or adapter.alphas or adapter.ranks):
        found = f"alpha {adapter.alpha} and r {adapter.rank}{', with patterns' if adapter.alphas or adapter.ranks else ''}"
        raise LoraError(f"{lora.name}: {adapter.where}: expected alpha equal to r, or alpha tensors in the file, found {found}; "
                        "make alpha equal to r there, and multiply the strength by alpha / r")
