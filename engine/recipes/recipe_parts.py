"""The parts of a recipe, version 1: LoRA, pass, mix of checkpoints, how it is saved; each field with its check.

What is made of it is in output.py.
"""
import dataclasses
from typing import Annotated

from ..errors import RecipeError
from ..loras.routing import strengths
from ..merging.adaptive.constants import AdaptiveConstants
from ..merging.combine import METHODS as COMBINES
from ..merging.gate import ClassicConstants
from . import checks, scope
from .checks import wrong
from .output import PAIR, ROLES, SINGLE, Output

__all__ = ["METHODS", "MIXES", "ORDERS", "PAIR", "ROLES", "SINGLE", "LoraEntry", "Mix", "Output", "Pass", "Save"]

METHODS = ("auto", "addition", "classic", "adaptive")
MIXES = ("weighted_sum", "add_difference", "slerp", "ties", "dare")
ORDERS = ("auto", "all at once", "expert by expert", "file by file")   # see engine/jobs/order.py
STRENGTH = checks.number(-100.0, 100.0)  # as ComfyUI's LoraLoader
FACTOR, NOT_NEGATIVE, SHARE = checks.number(0.0, 4.0), checks.number(0.0, 100.0), checks.number(0.0, 1.0)
SEED = checks.whole(0, 2**63 - 1)


def _constants(kind: type) -> checks.Check:
    names = tuple(field.name for field in dataclasses.fields(kind))
    return lambda value, where: kind(**checks.mapped(names, NOT_NEGATIVE)(value, where))


def _scope(value: object, where: str) -> dict[str, float]:
    """Factors by block range, preset and kind (scope.py)."""
    if not isinstance(value, dict):
        raise wrong(where, "an object of factors by block range or kind", value)
    for name in value:
        try:
            scope.span(str(name))
        except ValueError as cause:
            raise wrong(f"{where}.{name}", "a range of blocks or a kind of layer", name, f"{cause}") from cause
    try:
        scope.check(value)
    except ValueError as cause:
        raise wrong(where, "ranges of which the narrowest is clear for each block", tuple(value), f"{cause}") from cause
    return {name: STRENGTH(each, f"{where}.{name}") for name, each in value.items()}


def _strength(value: object, where: str) -> dict[str, float] | tuple[float, float]:
    """By role; or the text `high;low`, or one number as text for both."""
    if not isinstance(value, str):
        return checks.mapped(ROLES, STRENGTH)(value, where)
    try:
        high, low = strengths(value)
    except RecipeError as cause:
        raise wrong(where, "an object by expert, or a text as 1.0;0.5 (high;low)", value) from cause
    return STRENGTH(high, where), STRENGTH(low, where)


@dataclasses.dataclass(frozen=True)
class LoraEntry:
    """One LoRA: a file per role it acts on. `method` None means the method of the pass; `resolved` is what planning made of it.

    scope: strengths by block and kind, on top of the pass's. rs_lora: alpha / sqrt(rank), or not; None: as its metadata says.
    protected: added exactly, outside gates and methods, or not; None: when it is recognized as a distillation LoRA.
    sha256: by role, for finding a file again that was moved; never needed.
    """

    files: Annotated[dict[str, str], checks.mapped(ROLES, checks.filled)]
    strength: Annotated[dict[str, float], _strength] = dataclasses.field(default_factory=dict)
    method: Annotated[str | None, checks.optional(checks.choice(*METHODS))] = None
    resolved: Annotated[str | None, checks.optional(checks.choice(*METHODS[1:]))] = None
    scope: Annotated[dict[str, float], _scope] = dataclasses.field(default_factory=dict)
    rs_lora: Annotated[bool | None, checks.optional(checks.flag)] = None
    protected: Annotated[bool | None, checks.optional(checks.flag)] = None
    sha256: Annotated[dict[str, str], checks.mapped(ROLES, checks.filled)] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if isinstance(self.strength, tuple):
            high, low = self.strength
            told = {role: low if role == "low_noise" else high for role in self.files}
            object.__setattr__(self, "strength", told)


@dataclasses.dataclass(frozen=True)
class Pass:
    """LoRAs merged by one method. The strength of each is multiplied by `global_factor` and by `scope`.

    combine, density, gamma, t, seed: how the deltas of its LoRAs become one (engine/merging/combine). dense_density,
    dense_mode: what injection keeps of deltas that are no products of factors.
    """

    loras: Annotated[tuple[LoraEntry, ...], checks.listed(checks.record(LoraEntry))]
    name: Annotated[str, checks.text] = ""
    method: Annotated[str, checks.choice(*METHODS)] = "auto"
    global_factor: Annotated[float, FACTOR] = 1.0
    gate_distillation: Annotated[bool, checks.flag] = False
    classic: Annotated[ClassicConstants, _constants(ClassicConstants)] = dataclasses.field(default_factory=ClassicConstants)
    adaptive: Annotated[AdaptiveConstants, _constants(AdaptiveConstants)] = dataclasses.field(default_factory=AdaptiveConstants)
    combine: Annotated[str, checks.choice(*COMBINES)] = "sum"
    density: Annotated[float, SHARE] = 1.0
    gamma: Annotated[float, SHARE] = 0.01
    t: Annotated[float, SHARE] = 0.5
    seed: Annotated[int, SEED] = 0
    dense_density: Annotated[float, SHARE] = 1.0
    dense_mode: Annotated[str, checks.choice("magnitude", "dare")] = "magnitude"
    scope: Annotated[dict[str, float], _scope] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Mix:
    """What becomes of each expert's base before any LoRA: other checkpoints of the same shape are mixed in (engine/checkpoints).

    files: role -> the second model, or the second and the third. weighted_sum: a + s (b - a); slerp: from a to b by s;
    add_difference: a + s (b - c); ties, dare: the same with b - c thinned to `density`.
    """

    method: Annotated[str, checks.choice(*MIXES)]
    files: Annotated[dict[str, tuple[str, ...]], checks.mapped(ROLES, checks.listed(checks.filled))]
    strength: Annotated[dict[str, float], checks.mapped(ROLES, STRENGTH)] = dataclasses.field(default_factory=dict)
    density: Annotated[float, SHARE] = 1.0
    seed: Annotated[int, SEED] = 0
    scope: Annotated[dict[str, float], _scope] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Save:
    """Where the files go, how they are called, what is said in them, and in which order they are made."""

    folder: Annotated[str, checks.filled] = "."
    name: Annotated[str, checks.filled] = "%title%_%task%_%expert%_%format%"
    metadata: Annotated[str, checks.choice("publish", "private", "none")] = "publish"
    lora_names: Annotated[bool, checks.flag] = True
    on_exists: Annotated[str, checks.choice("number", "overwrite", "error")] = "number"
    order: Annotated[str, checks.choice(*ORDERS)] = ORDERS[0]
