"""What each class of card makes of formats by layer: of a plan's choices, and of a finished file's formats as if they were such."""
from collections.abc import Mapping

from ..specs import TensorSpec
from . import shares
from .cards import AFTER, CARDS
from .plan import Choice


def choices_of(layers: Mapping[str, Mapping]) -> dict[str, Choice]:
    """Layer -> choice. layers: as `inspect` tells them; a format that ComfyUI does not load is left out."""
    return {layer: Choice(each["format"], bool(each["full_precision"])) for layer, each in layers.items()
            if each["format"] in AFTER}


def card_reasons(model: Mapping[str, TensorSpec], choices: Mapping[str, Choice]) -> list[str]:
    """The lines of `card_lines`, and indented below each what runs where and why, on the first of its cards."""
    first = {}
    for card in CARDS:
        first.setdefault(_headline(model, choices, card), card)
    causes = {said: shares.lines(model, choices, card)[1:] for said, card in first.items()}
    return [line for (said, each), head in zip(causes.items(), card_lines(model, choices), strict=True)
            for line in [head, *(f"  {cause}" for cause in each)]]


def card_lines(model: Mapping[str, TensorSpec], choices: Mapping[str, Choice]) -> list[str]:
    """A headline for each class of card, those of which the same is true in one line. Layers without a choice are in 16 bit."""
    cards = {}
    for card, name in CARDS.items():
        cards.setdefault(_headline(model, choices, card), []).append("any other" if card == "cpu" else name)
    return [f"{', '.join(names)}: {said}" for said, names in cards.items()]


def _headline(model: Mapping[str, TensorSpec], choices: Mapping[str, Choice], card: str) -> str:
    return shares.headline(shares.shares(model, choices, card), card).removeprefix(f"{CARDS[card]}: ")
