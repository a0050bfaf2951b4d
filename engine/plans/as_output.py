"""A precision plan as an output of a recipe: the format that most layers get is the output's own, the others are named."""
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from ..errors import RecipeError
from ..recipes.output import Output
from .plan import KEEP, Choice, PrecisionPlan

PLAIN = Output("bf16")


def as_output(plan: PrecisionPlan, output: Output = PLAIN) -> Output:
    """`output` with the formats of a plan in place of its own; its experts, activations, searches and suffix stay.

    Raises RecipeError for a plan that quantizes nothing.
    """
    counts = Counter(choice.format for choices in plan.experts.values() for choice in choices.values() if choice.format != KEEP)
    if not counts:
        raise RecipeError(f"plan {plan.title}: expected a layer that is quantized, found none; choose bf16 or fp16 without a plan")
    main = counts.most_common(1)[0][0]
    return replace(output, format=main, plan=plan.title, kept_dtype=plan.kept_dtype, fp32_names=plan.fp32_names,
                   layers={role: _others(choices, main) for role, choices in plan.experts.items()},
                   full_precision={role: tuple(layer for layer, choice in choices.items()
                                               if choice.full_precision and choice.format != KEEP)
                                   for role, choices in plan.experts.items()})


def _others(choices: Mapping[str, Choice], main: str) -> dict[str, str]:
    return {layer: choice.format for layer, choice in choices.items() if choice.format != main}
