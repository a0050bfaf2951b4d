"""What each class of card makes of formats by layer: of a plan's choices, and of a finished file's formats as if they were such."""
from collections.abc import Mapping

from ..specs import TensorSpec
from . import shares
from .cards import AFTER, CARDS
from .plan import KEEP, Choice


def choices_of(layers: Mapping[str, Mapping]) -> dict[str, Choice]:
    """Layer -> choice. layers: as `inspect` tells them; a format that ComfyUI does not load is left out."""
    return {layer: Choice(each["format"], bool(each["full_precision"])) for layer, each in layers.items()
            if each["format"] in AFTER}


def card_lines(model: Mapping[str, TensorSpec], choices: Mapping[str, Choice]) -> list[str]:
    """A headline for each class of card, those of which the same is true in one line. Layers without a choice are in 16 bit."""
    known, cards = {layer: choices.get(layer, Choice(KEEP)) for layer in shares.multiply_adds(model)}, {}
    for card, name in CARDS.items():
        said = shares.headline(shares.shares(model, known, card), card).removeprefix(f"{name}: ")
        cards.setdefault(said, []).append("any other" if card == "cpu" else name)
    return [f"{', '.join(names)}: {said}" for said, names in cards.items()]
