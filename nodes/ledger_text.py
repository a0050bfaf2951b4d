"""A plan's ledger in words: what each LoRA contributes, every key that is refused, every file that is left out, with the reason."""
import os
from collections import Counter

from ..engine.alpha import ABSENT, OWN
from .handles import Lora

ORDINARY = {ABSENT, OWN}                           # where an alpha is from, without being worth a line
REASONS = 4                                        # lines; the report JSON has them all


def describe_plan(plan) -> list[str]:
    """Lines about every LoRA of every expert, from headers; then the plan's notices."""
    lines = []
    for expert in plan.experts:
        lines += [] if expert.role == "model" else [f"{expert.role}:"]
        for ledger in expert.ledgers:
            lines += describe_ledger(ledger)
    return lines + [f"note: {notice}" for notice in plan.notices]


def describe_ledger(ledger: dict) -> list[str]:
    """Lines about one LoRA on one expert: keys, rank, alpha, strength, method; then refusals, counted by reason.

    ledger: as in the report: lora, keys, applied, refused, rank, alpha_over_rank, strength, method.
    """
    if "note" in ledger:
        return [f"{ledger['lora']}: {ledger['note']}"]
    alpha = ledger.get("alpha_over_rank")
    told = "" if alpha is None else f", alpha/rank {', '.join(map(str, alpha)) if isinstance(alpha, list | tuple) else alpha}"
    lines = [f"{ledger['lora']}: {ledger['applied']} of {ledger['keys']} keys, rank {ledger['rank']}{told}, "
             f"strength {ledger['strength']:g}, {ledger['method']}"]
    lines += [f"  alpha from {where}" for where in ledger.get("alpha_from", ()) if where not in ORDINARY]
    reasons = Counter(refused["reason"] for refused in ledger["refused"]).most_common()
    lines += [f"  refused {count}: {reason}" for reason, count in reasons[:REASONS]]
    rest = reasons[REASONS:]
    return lines + ([f"  refused {sum(count for _, count in rest)}: {len(rest)} more reasons, in the report"] if rest else [])


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
