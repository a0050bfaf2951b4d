"""A precision plan for people: the picture that web/plan.js draws, and a table of all layers."""
from ..engine.jobs.experts import ExpertPlan
from ..engine.jobs.solve import Solved, byte_counts, error_of, predicted
from ..engine.jobs.solve import picture as cells_of
from ..engine.plans import shares
from ..engine.plans.of_file import card_lines, card_reasons
from ..engine.plans.plan import KEEP, PrecisionPlan, counts
from ..quant.formats import DEFAULT

VERSION = 1                                        # of what web/plan.js reads


def picture(experts: list[ExpertPlan], solved: Solved) -> dict:
    """Of every expert: bytes, error where it was measured, formats, cells, and what each class of card makes of it."""
    return {"version": VERSION, "experts": [_expert(expert, solved.plan, solved.trials.get(expert.role, {})) for expert in experts]}


def _expert(expert: ExpertPlan, plan: PrecisionPlan, trials: dict) -> dict:
    choices = plan.experts[expert.role]
    names = tuple(counts(plan, expert.role))
    sizes = byte_counts(expert, names, plan.kept_dtype, DEFAULT)
    names32 = None if plan.fp32_names is None else frozenset(plan.fp32_names)
    groups = {name: {layer: each for layer, each in choices.items() if each.format == name} for name in names}
    forms = [{"name": name, "layers": len(group), "bytes": sum(sizes[layer][name] for layer in group),
              "error": error_of(group, trials)} for name, group in groups.items()]
    return {"role": expert.role, "title": plan.title, "bytes": predicted(expert, choices, plan.kept_dtype, names32, DEFAULT),
            "error": error_of(choices, trials), "formats": forms, **cells_of(choices), "cards": card_lines(expert.specs, choices)}


def table(solved: Solved) -> list[str]:
    """A line per layer of each expert: format and why."""
    lines = []
    for role, choices in solved.plan.experts.items():
        lines += [f"{role}: {', '.join(f'{count} {name}' for name, count in counts(solved.plan, role).items())}"]
        lines += [f"  {layer}: {each.format}{', product in 16 bit' if each.full_precision and each.format != KEEP else ''}: "
                  f"{each.reason}" for layer, each in choices.items()]
    return lines


def on_cards(experts: list[ExpertPlan], solved: Solved) -> list[str]:
    """What each class of card makes of each expert, and why."""
    return [f"{expert.role}: {line}" for expert in experts for line in card_reasons(expert.specs, solved.plan.experts[expert.role])]


def on_card(experts: list[ExpertPlan], solved: Solved, card: str) -> list[str]:
    """What runs where on one class of card, and why; experts of which the same is true in one place."""
    said: dict[str, list[str]] = {}
    for expert in experts:
        lines = shares.lines(expert.specs, solved.plan.experts[expert.role], card)
        said.setdefault("\n  ".join(lines), []).append(expert.role)
    return [f"{' and '.join(roles)}, cards as this machine's: {lines}" for lines, roles in said.items()]
