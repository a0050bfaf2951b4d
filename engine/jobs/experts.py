"""One expert of a plan: its base, and which LoRA changes which of its tensors. From headers alone."""
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from .. import precision
from ..loras import energies
from ..loras.configured import configured
from ..loras.dialects import Index
from ..loras.ledger import Ledger, match
from ..loras.ledger_comfyui import match_comfyui
from ..loras.lora import LoraFile
from ..merging import combine
from ..merging.contribution import Contribution, PassRule, Rules
from ..merging.meter import Entry
from ..recipes import scope
from ..recipes.recipe import LoraEntry, Pass, Recipe
from ..specs import TensorSpec


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
    rules: Rules = field(default_factory=Rules)
    matched: list[tuple[LoraFile, Ledger]] = field(default_factory=list)   # by entry number
    rs_lora: list[bool | None] = field(default_factory=list)               # by entry number: the user's word

    @property
    def block_linears(self) -> set[str]:
        return {key for key, spec in self.specs.items() if precision.is_block_linear(key, spec)}

    @property
    def size(self) -> str:
        return self.variant.size


def plan_expert(role: str, source, variant, recipe: Recipe, loras: dict[str, LoraFile], sha256: dict[str, str]) -> ExpertPlan:
    """Match every LoRA of the recipe's passes that has a file for this role. Raises LoraError when nothing of one fits, RecipeError
    when a pass cannot combine its LoRAs by its method.

    recipe: resolved. A LoRA of strength 0 is told in the ledger with a note, and changes nothing.
    """
    specs = {key: source.spec(key) for key in list(source.keys())}
    rules = tuple(PassRule(each.combine, each.density, each.gamma, each.t, each.seed) for each in recipe.passes)
    plan = ExpertPlan(role, source, variant, specs, precision.processing_order(specs))
    plan.rules = Rules(rules, recipe.normalize, recipe.compat)
    index = Index(list(specs), specs)
    for number, each in enumerate(recipe.passes):
        mine = [entry for entry in each.loras if entry.files.get(role)]
        merged = [entry for entry in mine if not entry.protected and strength_of(entry, each, role)]
        if merged:
            combine.check(rules[number], each.name, len(merged))
        for entry in mine:
            lora, strength = loras[entry.files[role]], strength_of(entry, each, role)
            ledger = _matched(lora, index, recipe.compat, (role, entry.rs_lora)) if strength else Ledger()
            place = merged.index(entry) if entry in merged else 0
            asked = _contribution(lora, entry, each, (number, place, sha256[entry.files[role]]))
            _enter(plan, ledger, asked, entry, (each, strength))
    return plan


def _matched(lora: LoraFile, index: Index, compat: str, how: tuple[str, bool | None]) -> Ledger:
    """What a LoRA does to this base. how: role, and the user's word on rs-LoRA."""
    role, rs_lora = how
    return match_comfyui(lora, index) if compat == "comfyui" else match(lora, index, role, rs_lora=rs_lora)


def strength_of(entry: LoraEntry, each: Pass, role: str) -> float:
    """Strength of a LoRA on an expert, before the factors by block and kind."""
    return entry.strength.get(role, 1.0) * each.global_factor


def _contribution(lora: LoraFile, entry: LoraEntry, each: Pass, where: tuple[int, int, str]) -> Contribution:
    """What one LoRA is asked to add, without its modules and strength. where: pass number, place among the unprotected, sha256."""
    number, place, sha256 = where
    constants = each.adaptive if entry.resolved == "adaptive" else each.classic
    return Contribution(lora, [], 0.0, entry.resolved, constants, number, bool(entry.protected), each.dense_density,
                        each.dense_mode, each.seed, None, place, sha256)


def _enter(plan: ExpertPlan, ledger: Ledger, asked: Contribution, entry: LoraEntry, of_pass: tuple[Pass, float]) -> None:
    """One matched LoRA into the plan: its entry, its ledger, what it adds to which tensor. of_pass: the pass, and the strength."""
    (each, strength), who = of_pass, len(plan.entries)
    plan.matched.append((asked.lora, ledger))
    plan.rs_lora.append(entry.rs_lora)
    plan.entries.append(Entry(asked.lora.name, asked.pass_number, each.name, asked.protected))
    plan.ledgers.append(_told(ledger, asked, each, strength))
    for key, modules in ledger.applied.items():
        here = strength * scope.factor(each.scope, key) * scope.factor(entry.scope, key)
        if here:
            plan.contributions.setdefault(key, []).append((who, replace(asked, modules=modules, strength=here)))


def _told(ledger: Ledger, asked: Contribution, each: Pass, strength: float) -> dict:
    """A ledger as the report shows it."""
    lora = asked.lora
    return {
        "lora": lora.name, "sha256": asked.sha256, "pass": each.name, "method": asked.method, "strength": strength,
        "protected": asked.protected, "rank": lora.rank, "alpha_over_rank": list(ledger.alpha_over_rank),
        "alpha_from": list(ledger.alpha_from),
        "adapters": configured(lora, ledger),
        "distillation": lora.is_distillation, "kinds": ledger.kinds, "dialects": dict(ledger.dialects),
        "keys": len(lora.header.entries), "applied": len(ledger.applied_keys), "converted": len(ledger.converted),
        "tensors": len(ledger.applied), "elsewhere": len(ledger.elsewhere),
        "refused": [{"key": one.key, "reason": one.reason} for one in ledger.refused],
        **({} if strength else {"note": "strength 0: not merged"}),
    }


def weigh(plan: ExpertPlan, folder: Path, strict_share: float | None, tick: Callable[[], None]) -> None:
    """What share of each LoRA's energy is applied, converted, for the other expert, or refused, into the plan's ledgers.

    folder: where energies are kept; strict_share: raise LoraError where more than this share is refused, None: never; tick may
    raise to stop. Raises LoraError for a delta that overflows float32.
    """
    for who, ((lora, ledger), told) in enumerate(zip(plan.matched, plan.ledgers, strict=True)):
        if ledger.groups:
            cache = energies.EnergyCache(folder, told["sha256"], lora, rs_lora=plan.rs_lora[who])
            told["energies"] = energies.measure(lora, ledger, cache, tick)
            energies.check_sizes(lora, ledger, cache, _strengths(plan, who))
            if strict_share is not None:
                energies.check_strict(ledger, strict_share, lora.name)


def _strengths(plan: ExpertPlan, who: int) -> dict[str, float]:
    """Key of one LoRA's file -> the largest |strength| of what it is merged into. Classic computes its delta at strength 1."""
    found: dict[str, float] = {}
    for what in (what for whats in plan.contributions.values() for number, what in whats if number == who):
        strength = max(abs(what.strength), 1.0 if what.method == "classic" else 0.0)
        for key in (key for module in what.modules for key in module.keys):
            found[key] = max(strength, found.get(key, 0.0))
    return found
