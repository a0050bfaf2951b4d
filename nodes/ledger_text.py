"""A plan's ledger in words: what each LoRA contributes, every key that is refused, every file that is left out, with the reason."""
import os
from collections import Counter

from ..engine.bases.prefixes import LOADED
from ..engine.loras.alpha import ABSENT, OWN
from ..engine.loras.causes import cause_of
from ..engine.loras.energies import percent
from .handles import Lora

ORDINARY = {ABSENT, OWN}                           # where an alpha is from, without being worth a line
CAUSES = 4                                         # lines; the report JSON has all reasons


def describe_plan(plan) -> list[str]:
    """Lines about every LoRA of every expert, from headers; then the plan's notices."""
    lines = []
    for expert in plan.experts:
        lines += [] if expert.role == "model" else [f"{expert.role}:"]
        lines += [] if expert.ledgers else ["  no LoRA: stays as it is"]
        for ledger in expert.ledgers:
            lines += describe_ledger(ledger)
    return lines + [f"note: {notice}" for notice in plan.notices]


def describe_ledger(ledger: dict) -> list[str]:
    """Lines about one LoRA on one expert: keys, rank, alpha, strength, method; then what became of the other keys, with shares.

    ledger: as in the report: lora, keys, applied, refused, rank, alpha_over_rank, strength, method; where there are: converted and
    elsewhere (numbers of keys), dialects, energies (energies.measure).
    """
    if "note" in ledger:
        return [f"{ledger['lora']}: {ledger['note']}"]
    alpha = ledger.get("alpha_over_rank")
    told = "" if alpha is None else f", alpha/rank {', '.join(map(str, alpha)) if isinstance(alpha, list | tuple) else alpha}"
    lines = [f"{ledger['lora']}: {ledger['applied']} of {ledger['keys']} keys, rank {ledger['rank']}{told}, "
             f"strength {ledger['strength']:g}, {ledger['method']}"]
    lines += [f"  alpha from {where}" for where in ledger.get("alpha_from", ()) if where not in ORDINARY]
    return lines + _groups(ledger) + _refusals(ledger)


def _groups(ledger: dict) -> list[str]:
    """What was applied in a dialect that ComfyUI does not read, and what is for the other expert."""
    energies = ledger.get("energies") or {}
    converted, elsewhere = ledger.get("converted", 0), ledger.get("elsewhere", 0)
    names = ", ".join(name for name in ledger.get("dialects", {}) if name not in LOADED)
    lines = [f"  converted {converted}{_share(energies.get('converted'))}: ComfyUI does not load {names}"] if converted else []
    return lines + ([f"  for the other expert {elsewhere}{_share(energies.get('elsewhere'))}"] if elsewhere else [])


def _refusals(ledger: dict) -> list[str]:
    """Refused keys by cause, with the share of the LoRA's energy they hold and the commonest reason."""
    energies = ledger.get("energies") or {}
    causes: dict[str, Counter[str]] = {}
    for refused in ledger["refused"]:
        causes.setdefault(cause_of(refused["reason"]), Counter())[refused["reason"]] += 1
    ordered = sorted(causes.items(), key=lambda item: -item[1].total())
    lines = []
    for cause, reasons in ordered[:CAUSES]:
        more = f" (and {len(reasons) - 1} more of this kind, in the report)" if len(reasons) > 1 else ""
        share = energies.get("refused", {}).get(cause)
        lines.append(f"  refused {reasons.total()}{_share(share)}: {reasons.most_common(1)[0][0]}{more}")
    rest = ordered[CAUSES:]
    lines += [f"  refused {sum(each.total() for _, each in rest)}: {len(rest)} more causes, in the report"] if rest else []
    lost = energies.get("lost", 0.0)
    return lines + ([f"  {percent(lost)} of what was meant for this model could not be used"] if lost else [])


def _share(share: float | None) -> str:
    return "" if share is None else f" ({percent(share)} of the LoRA)"


def unused(lora: Lora, roles: tuple[str, ...]) -> list[str]:
    """Why a LoRA, or its file for an expert that is not loaded, does nothing on a model with these roles; none when all is used."""
    if len(roles) == 2:
        return []
    mine, rest = (lora.low, lora.high) if roles == ("low_noise",) else (lora.high, lora.low)
    role = "high_noise" if roles == ("model",) else roles[0]
    other = "low_noise" if role == "high_noise" else "high_noise"
    alone = f"a model that is one file takes {_widget(role)} alone" if roles == ("model",) else f"the {other} expert is not loaded"
    if mine is None:
        empty = "is switched off" if role in lora.off else "is empty"
        return [f"not used: {lora.name}: {_widget(role)} {empty}, and {alone}"]
    return [f"not used: {os.path.basename(rest)}: {alone}"] if rest not in {None, mine} else []


def _widget(role: str) -> str:
    return f"lora_{role.removesuffix('_noise')}"
