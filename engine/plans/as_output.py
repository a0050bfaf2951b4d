"""A precision plan as an output of a recipe: the format that most layers get is the output's own, the others are named.

Of a plan for a GGUF the output's own is the mix whose rules come nearest: its name and number tell people what is in the file. In
an output with a plan it stands for its default type alone.
"""
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from ..errors import RecipeError
from ..gguf_mix import MIXES, mix_types
from ..precision import GGUF
from ..recipes.output import Output
from .plan import KEEP, Choice, PrecisionPlan

PLAIN = Output("bf16")


def as_output(plan: PrecisionPlan, output: Output = PLAIN) -> Output:
    """`output` with the formats of a plan in place of its own; its experts, activations, searches and suffix stay.

    Raises RecipeError for a plan that quantizes nothing.
    """
    main, is_gguf = _common(plan), plan.container == GGUF
    slow = {role: () if is_gguf else tuple(layer for layer, choice in choices.items()
                                           if choice.full_precision and choice.format != KEEP)
            for role, choices in plan.experts.items()}
    return replace(output, format=base_of(plan)[0], plan=plan.title, kept_dtype=plan.kept_dtype, fp32_names=plan.fp32_names,
                   layers={role: _others(choices, main) for role, choices in plan.experts.items()}, full_precision=slow)


def base_of(plan: PrecisionPlan) -> tuple[str, int]:
    """(the format of the output, how many layers are not what it alone would make them). Raises RecipeError as `as_output`."""
    main = _common(plan)
    names = [*(name for name, mix in MIXES.items() if mix.default == main), *([main] if main not in MIXES else [])]
    misses = {name: sum(_misses(name, choices) for choices in plan.experts.values()) for name in names}
    return min(misses.items(), key=lambda item: (item[1], item[0] != plan.title))  # Q5_K says as much as Q5_K_S


def _misses(name: str, choices: Mapping[str, Choice]) -> int:
    rules = mix_types(name, [f"{layer}.weight" for layer in choices]) if name in MIXES else {}
    return sum(choice.format != rules.get(f"{layer}.weight", name) for layer, choice in choices.items())


def _common(plan: PrecisionPlan) -> str:
    """The format of the most layers that are quantized."""
    counts = Counter(choice.format for choices in plan.experts.values() for choice in choices.values() if choice.format != KEEP)
    if not counts:
        raise RecipeError(f"plan {plan.title}: expected a layer that is quantized, found none; choose bf16 or fp16 without a plan")
    return counts.most_common(1)[0][0]


def _others(choices: Mapping[str, Choice], main: str) -> dict[str, str]:
    return {layer: choice.format for layer, choice in choices.items() if choice.format != main}
