"""One expert of a plan: its base, and which LoRA changes which of its tensors. From headers alone."""
import os
from dataclasses import asdict, dataclass, field

from . import precision
from .alpha import METADATA, SIBLING
from .lora import Index, Ledger, LoraFile, match
from .merge import Contribution
from .meter import Entry
from .recipe import Pass, Recipe
from .specs import TensorSpec


@dataclass
class ExpertPlan:
    """A base with what is to be merged into it and what is to come out."""

    role: str                                      # high_noise, low_noise, or model for a file that stands alone
    source: object
    variant: object
    specs: dict[str, TensorSpec]                   # native key -> as stored, in file order
    order: list[str]                               # processing order
    entries: list[Entry] = field(default_factory=list)
    ledgers: list[dict] = field(default_factory=list)
    contributions: dict[str, list[tuple[int, Contribution]]] = field(default_factory=dict)   # key -> (entry number, what)
    outputs: list = field(default_factory=list)

    @property
    def block_linears(self) -> set[str]:
        return {key for key, spec in self.specs.items() if precision.is_block_linear(key, spec)}

    @property
    def size(self) -> str:
        return self.variant.size


def plan_expert(role: str, source, variant, recipe: Recipe, loras: dict[str, LoraFile], sha256: dict[str, str]) -> ExpertPlan:
    """Match every LoRA of the recipe's passes that has a file for this role. Raises LoraError when nothing of one fits.

    One of strength 0 is told in the ledger with a note, and changes nothing.
    """
    keys = source.keys()
    specs = {key: source.spec(key) for key in keys}
    plan = ExpertPlan(role, source, variant, specs, precision.processing_order(specs))
    index = Index(list(specs), specs)
    for number, each in enumerate(recipe.passes):
        for entry in each.loras:
            path, strength = entry.files.get(role), entry.strength.get(role, 1.0) * each.global_factor
            if not path:
                continue
            ledger = match(loras[path], index) if strength else Ledger()
            who = len(plan.entries)
            plan.entries.append(Entry(os.path.basename(path), number, each.name))
            plan.ledgers.append(_told(ledger, loras[path], sha256[path], each, (entry.resolved, strength)))
            for key, modules in ledger.applied.items():
                what = Contribution(loras[path], modules, strength, entry.resolved, each.classic)
                plan.contributions.setdefault(key, []).append((who, what))
    return plan


def _told(ledger: Ledger, lora: LoraFile, sha256: str, each: Pass, applied: tuple[str, float]) -> dict:
    """A ledger as the report shows it. applied: method and strength."""
    return {
        "lora": lora.name, "sha256": sha256, "pass": each.name, "method": applied[0], "strength": applied[1],
        "rank": lora.rank, "alpha_over_rank": list(ledger.alpha_over_rank), "alpha_from": list(ledger.alpha_from),
        "adapter": asdict(lora.adapter) if {each.split(",")[0] for each in ledger.alpha_from} & {METADATA, SIBLING} else None,
        "distillation": lora.is_distillation,
        "keys": len(lora.header.entries), "applied": len(ledger.applied_keys), "tensors": len(ledger.applied),
        "refused": [{"key": one.key, "reason": one.reason} for one in ledger.refused],
        **({} if applied[1] else {"note": "strength 0: not merged"}),
    }
