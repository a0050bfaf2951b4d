"""How far a layer's output is off in each format, and what that says: figures alone, no tensors.

    weights   ‖X(W - Ŵ)ᵀ‖ / ‖XWᵀ‖            W4A16: the weight is rounded, the input is not
    weighted  the same, Ŵ found with columns weighed by mean x² of other tokens
    rounded   ‖XWᵀ - X̂Ŵᵀ‖ / ‖XWᵀ‖           W4A4, W8A8: the input is rounded too, Ŵ the better of the two
X are tokens that gave no weights, so that a weighing that only fits what it saw is found out.
"""
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from ..plans.cards import FLOATS, INTS

# The mean of 32 tokens' squared errors is known to a fifth of itself.
LEAST_JUDGES = 32


@dataclass(frozen=True)
class FormatErrors:
    """Of one layer in one format. weighted: None where the format weighs nothing; rounded: None where inputs stay as they are."""

    weights: float
    weighted: float | None = None
    rounded: float | None = None

    @property
    def stored(self) -> float:
        """With the input as it is, the better of the two searches."""
        return self.weights if self.weighted is None else min(self.weights, self.weighted)

    def error(self, form: str, *, full_precision: bool) -> float:
        """Of the product as it is computed. INT formats do not look at full_precision."""
        unrounded = self.rounded is None or (full_precision and form not in INTS)
        return self.stored if unrounded else self.rounded


@dataclass(frozen=True)
class LayerErrors:
    """Of one layer. count: tokens that errors are of; the next four: of its input in NVFP4, see activations.InputQuality;
    formats: by name."""

    count: int
    rel_rmse: float
    mean_abs: float
    clip_rate: float
    max_abs: float
    formats: Mapping[str, FormatErrors]

    @property
    def gain(self) -> float | None:
        """Geometric mean over the formats that weigh of weighted / plain error; None where none does, or where fewer than
        LEAST_JUDGES tokens would say so. Under 1 weighing helps."""
        if self.count < LEAST_JUDGES:
            return None
        ratios = [math.log(each.weighted / each.weights) for each in self.formats.values() if each.weighted and each.weights]
        return math.exp(sum(ratios) / len(ratios)) if ratios else None

    @property
    def weighing_helps(self) -> bool:
        return self.gain is not None and self.gain < 1.0

    def error(self, form: str, *, full_precision: bool) -> float:
        """Of the product as it is computed from the file, in which columns count as mean x² says where that helps."""
        found = self.formats[form]
        unrounded = found.rounded is None or (full_precision and form not in INTS)
        weighted = found.weighted if self.weighing_helps and found.weighted is not None else found.weights
        return weighted if unrounded else found.rounded

    def to_json(self) -> dict:
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping) -> "LayerErrors":
        return cls(**{**found, "formats": {name: FormatErrors(**each) for name, each in found["formats"].items()}})


# What is much: twice the error of the weights alone. Normal inputs and weights give 1.5 (nvfp4: 0.125 over 0.082).
FACTOR = 2.0
# Under this a layer is no worse than nvfp4 is on normal inputs and weights (0.125), whatever its weights alone would have.
FLOOR = 0.15


def spoiled(errors: FormatErrors, form: str, factor: float = FACTOR, floor: float = FLOOR) -> bool:
    """Whether rounding the input spoils what the weight would give: then the product belongs in 16 bit. Never of INT formats, which
    round it whatever is said."""
    return (form in FLOATS and errors.rounded is not None and errors.rounded > floor
            and errors.rounded > factor * errors.stored)


def share_helped(layers: Iterable[LayerErrors]) -> tuple[int, int, float | None]:
    """(layers where weighing helps, layers where it was tried, mean ratio of the errors of the first)."""
    told = [each.gain for each in layers if each.gain is not None]
    helped = [gain for gain in told if gain < 1.0]
    return len(helped), len(told), math.exp(sum(map(math.log, helped)) / len(helped)) if helped else None
