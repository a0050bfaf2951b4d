"""What a merge of LoRAs does to each tensor, planned from headers: which modules meet, in which form they are stored, what not.

Products of factors lie side by side; whole differences alone are summed; anything else on a matrix goes through its dense delta.
"""
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ..errors import RecipeError
from ..loras.delta import flat_shape
from ..loras.ledger import match
from ..loras.lora import LoraFile
from ..loras.modules import Diff, Module
from ..recipes.scope import factor
from ..specs import TensorSpec
from . import native
from .report import Report, Row
from .shapes import index_of
from .wish import Ranks

METHODS = ("exact", "svd")
ON_REFUSED = ("error", "leave_out")
NEEDS_BASE = "needs the base's weights; merge it into the model and use Extract LoRA"
NOT_EXACT = "is no product of factors, which method exact cannot store; choose method svd"


@dataclass(frozen=True)
class Part:
    """One LoRA of the merge. strength: with the global factor; rs_lora: as in `ledger.match`; scope: as in scope.py."""

    lora: LoraFile
    strength: float
    rs_lora: bool | None = None
    scope: Mapping[str, float] = field(default_factory=dict)

    def at(self, key: str) -> float:
        """Strength on one tensor."""
        return self.strength * (factor(self.scope, key) if self.scope else 1.0)


@dataclass(frozen=True)
class Merging:
    """role: the expert whose halves are merged, None when there is one model. method: "exact" or "svd" (then `ranks`)."""

    method: str = "exact"
    ranks: Ranks = field(default_factory=Ranks)
    role: str | None = None
    on_refused: str = "error"
    seed: int = 0

    def __post_init__(self):
        if self.method not in METHODS or self.on_refused not in ON_REFUSED:
            expected = f"expected method of {', '.join(METHODS)} and on_refused of {', '.join(ON_REFUSED)}"
            raise RecipeError(f"merge LoRAs: {expected}, found {self.method!r} and {self.on_refused!r}")


@dataclass(frozen=True)
class Job:
    """What happens to one tensor. way: "factors", "dense" or "whole"."""

    key: str
    shape: tuple[int, ...]
    terms: tuple[tuple[Part, Module], ...]
    way: str

    @property
    def rank(self) -> int:
        """Of the exact product."""
        return sum(module.rank for _, module in self.terms)


def plan_jobs(parts: list[Part], wish: Merging, report: Report) -> list[Job]:
    """Every tensor to be written, factors first, then dense, then whole ones. What cannot be stored goes into the report."""
    index = index_of([part.lora for part in parts], wish.role)
    terms: dict[str, list[tuple[Part, Module]]] = {}
    for part in parts:
        ledger = match(part.lora, index, wish.role, rs_lora=part.rs_lora)
        report.left_out += [Row(f"{part.lora.name}: {each.key}", None, None, each.reason) for each in ledger.refused]
        for key, modules in ledger.applied.items():
            terms.setdefault(key, []).extend((part, module) for module in modules if part.at(key))
    jobs = []
    for key, own in terms.items():
        usable = [(part, module) for part, module in own if module.form in {"factors", "dense"}]
        report.left_out += [Row(f"{part.lora.name}: {module.keys[0]}", None, None, f"{module.kind} {NEEDS_BASE}")
                            for part, module in own if module.form not in {"factors", "dense"}]
        job = _job(key, index.specs[key].shape, tuple(usable), wish)
        if usable and job.way == "dense" and wish.method == "exact":
            report.left_out += [Row(f"{part.lora.name}: {module.keys[0]}", None, None, f"{module.kind} {NOT_EXACT}")
                                for part, module in usable if module.form == "dense"]
            job = _job(key, job.shape, tuple(each for each in usable if each[1].form == "factors"), wish)
        jobs += [job] if job.terms else []
    return sorted(jobs, key=lambda job: ("factors", "dense", "whole").index(job.way))


def _job(key: str, shape: tuple[int, ...], terms: tuple[tuple[Part, Module], ...], wish: Merging) -> Job:
    if all(isinstance(module, Diff) for _, module in terms) or not native.is_matrix(key, shape):
        return Job(key, shape, terms, "whole")
    if all(module.form == "factors" for _, module in terms):
        return Job(key, shape, terms, "factors")
    return Job(key, shape, terms, "whole" if wish.method == "svd" and native.is_small(shape, wish.ranks.most) else "dense")


def planned_specs(job: Job, wish: Merging, dtype: torch.dtype) -> dict[str, TensorSpec]:
    if job.way == "whole":
        return native.whole_spec(job.key, job.shape, dtype)
    rank = job.rank if wish.method == "exact" else min(wish.ranks.most, *flat_shape(job.shape))
    return native.pair_specs(job.key, job.shape, rank if job.way == "dense" else min(rank, job.rank), dtype)
