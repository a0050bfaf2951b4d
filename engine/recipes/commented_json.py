"""JSON that people write by hand: with `//` comments outside strings, and errors that tell line and column.

The original Action-Master removed comments by a pattern over the whole text, so that an address inside a string cut the text off
there. Here a comment becomes spaces: every other character keeps its place, and so does the place an error names.
"""
import difflib
import json
import re

from .. import strict_json
from ..errors import RecipeError

LARGEST = 8 << 20                                  # characters: thousands of LoRAs
STRING_OR_COMMENT = re.compile(r'"(?:[^"\\\n]|\\.)*"?|//[^\n]*')


def parse(text: str, where: str) -> dict:
    """The JSON object in `text`. where: what to call it in an error.

    Raises RecipeError: line and column where the text is none, or what else is wrong with it.
    """
    if len(text) > LARGEST:
        raise RecipeError(f"{where}: expected a recipe of at most {LARGEST} characters, found {len(text)}, this is another file")
    bare = STRING_OR_COMMENT.sub(_blank, text.removeprefix("\ufeff"))
    try:
        return strict_json.parse(bare.encode())
    except json.JSONDecodeError as cause:
        raise RecipeError(f"{where}: line {cause.lineno} column {cause.colno}: expected JSON, found text that is none "
                          f"({cause.msg}){_shown(text, cause.lineno)}, correct it there or just before") from cause
    except ValueError as cause:                    # a key twice, too deep, half a surrogate pair
        raise RecipeError(f"{where}: expected a recipe as a JSON object, found text that is none ({cause}), correct it") from cause


def place_of(text: str, key: str) -> str:
    """` (line N)` where `key` occurs as a key in `text` exactly once, else nothing: for an error about that key."""
    found = list(re.finditer(re.escape(json.dumps(key, ensure_ascii=False)) + r"\s*:", text))
    return f" (line {text.count(chr(10), 0, found[0].start()) + 1})" if len(found) == 1 else ""


def check_keys(found: dict, known: tuple[str, ...], place: str, source: tuple[str, str]) -> None:
    """Raise RecipeError at a key that is not among the `known`. A key that begins with `_` or `//` is a remark.

    source: text and name of the recipe.
    """
    text, where = source
    for key in found:
        if key not in known and not key.startswith(("_", "//")):
            near = difflib.get_close_matches(key, known, 1)
            remedy = f"did you mean {near[0]}" if near else "remove it, or begin its name with _ to keep it as a remark"
            raise RecipeError(f"{where}: {place}.{key}{place_of(text, key)}: expected one of {', '.join(known)}, "
                              f"found {key[:60]!r}, {remedy}")


def _blank(found: re.Match) -> str:
    return found[0] if found[0].startswith('"') else " " * len(found[0])


def _shown(text: str, line: int) -> str:
    """The line that is wrong, shortened."""
    lines = text.splitlines()
    said = lines[line - 1].strip()[:60] if line <= len(lines) else ""
    return f" in {said!r}" if said else ""
