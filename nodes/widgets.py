"""Check a widget's value before it becomes part of a recipe: the error then names the widget, not a place in JSON.

ComfyUI checks bounds of what is typed into a widget, but not of what comes over a link.
"""
from ..engine.errors import RecipeError


def check_filled(where: str, text: str) -> None:
    """Raise RecipeError when `text` is blank. where: node and widget, as `save model: title`."""
    if not text.strip():
        raise RecipeError(f"{where} is empty; write something into it")


def check_within(where: str, value: float, least: float, most: float) -> None:
    """Raise RecipeError unless least <= value <= most; NaN is not."""
    if not least <= value <= most:
        raise RecipeError(f"{where}: expected {least:g} to {most:g}, found {value:g}; correct it, or what is linked to it")
