"""A plan's ledger in words: what each LoRA contributes, and every key that is refused with its reason."""
from collections import Counter

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
    alpha = ledger.get("alpha_over_rank")
    told = "" if alpha is None else f", alpha/rank {', '.join(map(str, alpha)) if isinstance(alpha, list | tuple) else alpha}"
    lines = [f"{ledger['lora']}: {ledger['applied']} of {ledger['keys']} keys, rank {ledger['rank']}{told}, "
             f"strength {ledger['strength']:g}, {ledger['method']}"]
    reasons = Counter(refused["reason"] for refused in ledger["refused"]).most_common()
    lines += [f"  refused {count}: {reason}" for reason, count in reasons[:REASONS]]
    rest = reasons[REASONS:]
    return lines + ([f"  refused {sum(count for _, count in rest)}: {len(rest)} more reasons, in the report"] if rest else [])
