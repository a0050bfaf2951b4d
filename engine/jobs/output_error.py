"""How far a layer's output is off in a format, on tokens of a calibration: what a trial measures besides the weights' own error.

    energy = ‖XW'ᵀ‖²     weights: ‖X(W' - Ŵ)ᵀ‖²     rounded: ‖X(W' - Ŵ)ᵀ + (X - X̂)Ŵᵀ‖² = ‖XW'ᵀ - X̂Ŵᵀ‖²
over the tried rows of W', with the float32 merge and float32 products: each difference is taken before it is multiplied, so that
small errors are not differences of large sums. All of it is relative, so that the share of rows that is tried does not matter.

Formats that search are tried twice, plain and with columns weighed by mean x². The rotated formats (asym_w4a8_int8, convrot_w4a4,
int8_tensorwise with convrot) have nothing to weigh: their codes belong to rotated channels, and diag(H D Hᵀ) is the mean of D
within each group of 256, as every entry of H is ± 1/16. Only channels that hang together leave a difference: where runs of 16 share
half of their variance, 0.18 of the mean, while the columns themselves differ by 3 (benchmarks/calibrated_error.py), and weighing
blocks of 16 rotated 4-bit codes by that gains 0.5 %.
"""
from collections.abc import Callable

import torch

from ...quant.formats import weighs
from ..calibration.activations import input_form, input_quality, rounded
from ..calibration.layer_errors import FormatErrors, LayerErrors
from ..calibration.layer_inputs import LayerInputs
from ..products import multiply
from .sample import square

Decode = Callable[[torch.Tensor | None], list[torch.Tensor]]


class OutputError:
    """Collects the errors of one layer's formats. merged: tried rows of the merge, (rows, in_features) float32 each, on one
    device."""

    def __init__(self, inputs: LayerInputs, merged: list[torch.Tensor], card: str | None):
        self.merged, self.card, self.amax = merged, card, inputs.amax
        self.tokens = inputs.tokens.to(merged[0].device)
        self.importance = inputs.importance.to(merged[0].device)
        self.energy = sum(square(multiply(self.tokens, rows)) for rows in merged)
        self.formats: dict[str, FormatErrors] = {}

    def add(self, name: str, form, plain: list[torch.Tensor], decode: Decode) -> None:
        """Measure a format. plain: its rows, decoded; decode: the same again for weights of the columns, called where it weighs.

        Nothing is entered where the output is zero: no error is relative to that.
        """
        if not self.energy:
            return
        weights, weighted, best = self._stored(plain), None, plain
        if weighs(form):
            other = decode(self.importance)
            weighted = self._stored(other)
            best = other if weighted < weights else plain
        taken = input_form(form, self.card)
        self.formats[name] = FormatErrors(weights, weighted, None if taken is None else self._rounded(best, taken))

    def _stored(self, decoded: list[torch.Tensor]) -> float:
        lost = (square(multiply(self.tokens, rows - ours)) for rows, ours in zip(self.merged, decoded, strict=True))
        return (sum(lost) / self.energy) ** 0.5

    def _rounded(self, decoded: list[torch.Tensor], form) -> float:
        off = self.tokens - rounded(self.tokens, form, self.amax)
        lost = (square(multiply(self.tokens, rows - ours).add_(multiply(off, ours)))
                for rows, ours in zip(self.merged, decoded, strict=True))
        return (sum(lost) / self.energy) ** 0.5

    def found(self) -> LayerErrors | None:
        """None where no format could be measured."""
        if not self.formats:
            return None
        told = input_quality(self.tokens, self.amax)
        return LayerErrors(len(self.tokens), told.rel_rmse, told.mean_abs, told.clip_rate, told.max_abs, self.formats)
