"""What a trial of formats takes from a session: for each layer the tokens that judge, the weights from the other half, and amax.

One half of the calls gives mean x² (the weights of a search), tokens of the other half give output errors. Gathered keeps the
halves apart, and no kept token is on both sides; but text is the same at every step, and some of it in every prompt, so that the
few tokens that judge k and v of the cross-attention may have been in the other half's sums. Too few decide nothing
(layer_errors.py).
"""
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from ..plans.input_scales import MARGIN

WEIGHTS, JUDGES = 0, 1                             # halves


class Gathered(Protocol):
    """gather.Gathered, as far as it is needed here."""

    state: str

    def layers(self): ...
    def amax(self, layer: str) -> torch.Tensor: ...
    def columns(self, layer: str, half: int | None = None) -> tuple[torch.Tensor, int]: ...
    def tokens(self, layer: str, half: int | None = None) -> torch.Tensor: ...


@dataclass(frozen=True)
class LayerInputs:
    """Of one layer. tokens: (n, in_features) float32; importance: (in_features,) float32, mean x² of other calls; amax: margin
    included."""

    tokens: torch.Tensor
    importance: torch.Tensor
    amax: float


@dataclass(frozen=True)
class Inputs:
    """One expert's inputs. margin: times the largest input, what input scales are to stand for; card: a key of CARDS, on which the
    products are computed, None: each format's on a card that has it; session, prompts: for what a person is told."""

    gathered: Gathered
    margin: float = MARGIN
    card: str | None = None
    session: str = ""
    prompts: int = 0

    @property
    def content(self) -> list:
        """What a trial depends on, for its cache."""
        return [self.gathered.state, self.margin, self.card]

    @cached_property
    def known(self) -> frozenset[str]:
        return frozenset(self.gathered.layers())

    def of(self, layer: str, columns: int) -> LayerInputs | None:
        """None for a layer that was not seen, in both halves, with finite inputs, or has another width."""
        if layer not in self.known:
            return None
        largest = self.gathered.amax(layer)
        largest = largest[torch.isfinite(largest)].max().item() if torch.isfinite(largest).any() else 0.0
        squares, count = self.gathered.columns(layer, WEIGHTS)
        tokens = self.gathered.tokens(layer, JUDGES)
        usable = count and len(tokens) and largest > 0 and tokens.shape[1] == squares.numel() == columns
        if not usable or not torch.isfinite(tokens).all() or not torch.isfinite(squares).all():
            return None
        return LayerInputs(tokens.float().contiguous(), squares.float(), largest * self.margin)
