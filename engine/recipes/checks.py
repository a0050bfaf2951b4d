"""What one value of a recipe may be. A check takes the value and its JSON path and returns it in its final form.

Each raises RecipeError: JSON path, what was expected, what came.
"""
import dataclasses
import difflib
import re
import reprlib
from collections.abc import Callable
from datetime import date

from ..errors import RecipeError
from ..strict_json import is_text

Check = Callable[[object, str], object]
SHORT = reprlib.Repr()
SHORT.maxstring = SHORT.maxother = 80


def wrong(where: str, expected: str, found: object, remedy: str = "correct it in the recipe") -> RecipeError:
    """The error to raise; `found` is shown shortened, however long or deep it is."""
    return RecipeError(f"{where or 'recipe'}: expected {expected}, found {SHORT.repr(found)}, {remedy}")


def record(kind: type) -> Check:
    """An object with the fields of dataclass `kind` and no others; each field carries its check as Annotated[type, check]."""
    def check(value: object, where: str) -> object:
        fields = {field.name: field for field in dataclasses.fields(kind)}
        if not isinstance(value, dict):
            raise wrong(where, f"an object with {', '.join(fields)}", value)
        inside = f"{where}." if where else ""
        for name in value:
            if name not in fields:
                near = difflib.get_close_matches(str(name), fields, 1)
                remedy = f"did you mean {near[0]}" if near else "remove it, or update the pack if a newer version wrote this recipe"
                raise wrong(inside + str(name), f"one of {', '.join(fields)}", name, remedy)
        for name, field in fields.items():
            if name not in value and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise wrong(inside + name, "a value", None, "add it to the recipe")
        return kind(**{name: fields[name].type.__metadata__[0](each, inside + name) for name, each in value.items()})
    return check


def listed(each: Check) -> Check:
    """A list, kept as a tuple."""
    def check(value: object, where: str) -> tuple:
        if not isinstance(value, list | tuple):
            raise wrong(where, "a list", value)
        return tuple(each(part, f"{where}[{index}]") for index, part in enumerate(value))
    return check


def mapped(names: tuple[str, ...], each: Check) -> Check:
    """An object whose names are among `names`; comes back in the order of `names`."""
    def check(value: object, where: str) -> dict:
        if not isinstance(value, dict):
            raise wrong(where, f"an object with {', '.join(names)}", value)
        for name in value:
            if name not in names:
                raise wrong(f"{where}.{name}", f"one of {', '.join(names)}", name)
        return {name: each(value[name], f"{where}.{name}") for name in names if name in value}
    return check


def optional(each: Check) -> Check:
    """null, or what `each` accepts."""
    return lambda value, where: None if value is None else each(value, where)


def choice(*options: object) -> Check:
    """One of `options`, of the same type: true is not 1."""
    def check(value: object, where: str) -> object:
        for option in options:
            if value == option and type(value) is type(option):
                return option
        raise wrong(where, " or ".join(map(str, options)), value)
    return check


def number(low: float, high: float) -> Check:
    """A finite number from `low` to `high`, as float."""
    def check(value: object, where: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:  # false for NaN
            raise wrong(where, f"a number from {low:g} to {high:g}", value)
        return float(value)
    return check


def whole(low: int, high: int) -> Check:
    """A whole number from `low` to `high`."""
    def check(value: object, where: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise wrong(where, f"a whole number from {low} to {high}", value)
        return value
    return check


def flag(value: object, where: str) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise wrong(where, "true or false", value)
    return value


def text(value: object, where: str) -> str:
    """A string that can be written as UTF-8; it may be empty."""
    if not isinstance(value, str) or not is_text(value):
        raise wrong(where, "a text", value)
    return value


def filled(value: object, where: str) -> str:
    """A text with something in it: the name of a file or folder, a title."""
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise wrong(where, "a text that is not empty", value)
    return value


def day(value: object, where: str) -> str:
    """A calendar date as YYYY-MM-DD (ISO 8601)."""
    try:
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", value, re.ASCII) and date.fromisoformat(value):
            return value
    except (TypeError, ValueError):
        pass
    raise wrong(where, "a date as 2026-11-21", value)
