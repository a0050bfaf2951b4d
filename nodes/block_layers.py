"""The layers of a model that may be quantized, from its header, and whether a plan or input scales were made for them."""
import os
from collections.abc import Mapping, Sequence

from ..engine.bases.source import open_source
from ..engine.errors import RecipeError
from ..engine.plans.plan import PrecisionPlan, block_linears

Layers = Mapping[str, Sequence[str]]               # role -> block linears, of the experts that something is asked of


def layers_in(source) -> list[str]:
    """The block linears of an open source."""
    return list(block_linears({key: source.spec(key) for key in list(source.keys())}))


def layers_of(path: str | os.PathLike) -> list[str]:
    """The block linears of a file. Raises SourceError."""
    with open_source(os.fspath(path), allow_lossy=True) as source:
        return layers_in(source)


def check_plan(plan: PrecisionPlan, layers: Layers, where: str) -> None:
    """Raise RecipeError unless the plan names every one of these layers, and no other. where: the node, for the message."""
    strange = [role for role in layers if role not in plan.experts]
    if strange:
        raise RecipeError(f"{where}: plan {plan.title} is for {' and '.join(plan.experts)}, not for {' and '.join(strange)}; make "
                          "it of the same dit, or choose other experts")
    for role, wanted in layers.items():
        named, own = plan.experts[role], set(wanted)
        wrong = [f"{layer} is not in it" for layer in wanted if layer not in named]
        wrong += [f"{layer} is not in the model" for layer in named if layer not in own]
        if wrong:
            raise RecipeError(f"{where}: plan {plan.title}: expected the {len(wanted)} layers of {role}, found {len(named)}, and "
                              f"{wrong[0]}; it was made for another model, make it of the same dit")


def check_scales(scales: Mapping[str, Mapping[str, float]], layers: Layers, where: str) -> None:
    """Raise RecipeError when input scales say nothing of these experts, or name layers that they do not have."""
    if not any(role in scales for role in layers):
        raise RecipeError(f"{where}: scales are for {' and '.join(scales)}, not for {' or '.join(layers)}; make them of the same "
                          "dit, or choose other experts")
    for role in [role for role in layers if role in scales]:
        own = set(layers[role])
        foreign = [layer for layer in scales[role] if layer not in own]
        if foreign:
            raise RecipeError(f"{where}: scales: expected layers of {role}, found {len(foreign)} that it has not, as {foreign[0]}; "
                              "they were made for another model, make them of the same dit")
