"""The ledger of `compat: comfyui`: what ComfyUI itself would apply of a LoRA, by the order and the gaps of its own loading."""
from typing import TYPE_CHECKING

from ..errors import LoraError
from .adapters.comfy_keys import lay_out
from .causes import cause_of
from .dialects import Index, split
from .ledger import Group, Ledger, grouped, nothing

if TYPE_CHECKING:
    from .lora import LoraFile


def match_comfyui(lora: "LoraFile", index: Index) -> Ledger:
    """The ledger of what ComfyUI 0.33 itself would apply of a LoRA, and of what it would pass over. Raises LoraError as `match`."""
    ledger = Ledger()
    ledger.applied, ledger.refused = lay_out(lora, index)
    reasons = {each.key: each.reason for each in ledger.refused}
    for parts in grouped(lora, Ledger()).values():
        kept = {part: key for part, key in parts.items() if key not in reasons}
        left = {part: key for part, key in parts.items() if key in reasons}
        ledger.groups += [Group("applied", kept)] if kept else []
        ledger.groups += [Group("refused", left, cause_of(reasons[next(iter(left.values()))]))] if left else []
    ledger.groups += [Group("refused", {key: key}, cause_of(why)) for key, why in reasons.items() if split(key) is None]
    if not ledger.applied:
        raise LoraError(nothing(lora, ledger, None))
    return ledger
