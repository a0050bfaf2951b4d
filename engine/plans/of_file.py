"""A file's formats as choices, so that what is said of a plan can be said of any finished file."""
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
    """A headline for each class of card. Layers without a choice are in 16 bit."""
    known = {layer: choices.get(layer, Choice(KEEP)) for layer in shares.multiply_adds(model)}
    return [shares.headline(shares.shares(model, known, card), card) for card in CARDS]
