"""Adaptive injection as addition: the gated factors of one tensor, at their strengths, limited together.

    delta_gated = up' @ down',  up' = up @ left @ s (l_new new + l_refine known),  down' = right @ down
left, right, new, known: small matrices that the measuring step stored (store.py); l: the limiter (limiter.py). Products only, in
float64 on the CPU and on one torch thread, rounded once to float32: what a preview computes is what a file gets.
"""
import math
from typing import TYPE_CHECKING

import torch

from ...bands import one_thread
from ...loras.factors import Factors
from .entry import Entry, factor_modules
from .limiter import Part, limit
from .spectral import norm_of_sum

if TYPE_CHECKING:
    from ..contribution import Contribution

CPU = torch.device("cpu")


@one_thread()
def gated_factors(key: str, shape: tuple[int, ...], contributions: "list[Contribution]",
                  device: torch.device) -> tuple[list[Factors], list[dict]]:
    """Factors of what the adaptive contributions of one tensor add, in their order, at their strengths; and what to report.

    contributions: of all passes, each with at least one module in factor form and `gated` set by `store.ensure`; their other
    modules are not looked at. shape: of the base tensor. Factors: float32 on `device`, up (out, r), down (r, in).
    Raises RuntimeError when a contribution was not measured, LoraError when a value of a LoRA is not finite.
    """
    entries = [_entry(key, shape, each) for each in contributions]
    raws = [raw_factors(each.lora, each.modules, shape) for each in contributions]
    parts = [Part(entry, raw, each.strength, each.gated.sha256)
             for entry, raw, each in zip(entries, raws, contributions, strict=True)]
    free = [part for part, each in zip(parts, contributions, strict=True) if not getattr(each, "protected", False)]
    limits = limit(free, [each.gated.constants for each in contributions])
    no_limits = {tier: {**told, "factor": 1.0} for tier, told in limits.items()}
    own = [limits if any(part is each for each in free) else no_limits for part in parts]
    found = [_apply(part, said["new"]["factor"], said["refine"]["factor"]) for part, said in zip(parts, own, strict=True)]
    spectral = norm_of_sum([(each.up, each.down) for each in found])
    told = [_tell(each, part, said, spectral) for each, part, said in zip(contributions, parts, own, strict=True)]
    return [Factors(each.up.to(device), each.down.to(device)) for each in found], told


def raw_factors(lora, modules: list, shape: tuple[int, ...]) -> Factors:
    """The LoRA's own factors for one tensor at strength 1, alpha / rank folded in, several modules side by side; float32, CPU."""
    found = [module.load(lora, shape, CPU).factors for module in factor_modules(modules)]
    if len(found) == 1:
        return found[0]
    return Factors(torch.cat([each.up for each in found], 1), torch.cat([each.down for each in found]))


def _entry(key: str, shape: tuple[int, ...], contribution: "Contribution") -> Entry:
    if contribution.gated is None:
        raise RuntimeError(f"{key}: {contribution.lora.name} is to be gated and was not measured")
    return contribution.gated.entry(key, shape, contribution.modules)


def _apply(part: Part, new: float, refine: float) -> Factors:
    """new, refine: the limiter's factors. δ = 0 passes as it is."""
    entry, raw = part.entry, part.raw
    if not entry.rank:
        return Factors(raw.up * part.strength, raw.down)
    small = part.strength * (entry.left @ entry.inner(new, refine))
    return Factors((raw.up.double() @ small).float(), part.vt)


def _tell(contribution: "Contribution", part: Part, limits: dict, spectral: float) -> dict:
    """One contribution's row of the report. Energies are squared norms at strength 1; kept is the share of ‖δ‖² that passes the
    gate, before the limiter."""
    said, modules = part.entry.figures, factor_modules(contribution.modules)
    passed, base = said["passed_new"] + said["passed_refine"], said["base_spectral"]
    return {
        "lora": contribution.lora.name, "method": "adaptive", "rank": part.raw.down.shape[0],
        "alpha_over_rank": sorted({module.factor for module in modules}),
        "tier": "refine" if said["energy_refine"] > said["energy_new"] else "new",
        **{name: said[name] for name in ("energy_new", "energy_refine", "passed_new", "passed_refine", "share", "tau",
                                         "pairs_known", "pairs_too_strong")},
        "rank_used": part.entry.rank, "kept": min(1.0, passed / said["energy"]) if said["energy"] else 1.0,
        "limits": {tier: dict(told) for tier, told in limits.items()},
        "limit_hit": any(told["factor"] < 1 for told in limits.values()),
        "base_norm": math.sqrt(said["base"]), "sigma_over_base": spectral / base if base else None,
    }
