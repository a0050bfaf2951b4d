"""Formats by regular expression on layer names: excluded layers are kept, included ones get the format that is named.

re.search, ignoring case, as the original converter's --exclude and --include; as there, include beats exclude. So excludes come
first, then includes in their order: of two that match one layer the later wins. Unlike there they also change a GGUF map, and the
format is free (it knew nvfp4 alone).
"""
import re
import warnings
from collections.abc import Iterable, Mapping

from ..errors import RecipeError
from .moves import Choices, moved
from .plan import KEEP, Choice


def compiled(pattern: str, where: str) -> re.Pattern:
    """The pattern, ignoring case. Raises RecipeError with the place and the fault in it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # "[[" may mean something else one day
            return re.compile(pattern, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as cause:
        raise RecipeError(f"{where}: expected a regular expression, found {pattern!r} ({cause}), correct it") from cause


def apply(choices: Mapping[str, Choice], include: Iterable[tuple[str, str]],
          exclude: Iterable[str]) -> tuple[Choices, list[str]]:
    """`choices` after the patterns. include: (pattern, format); exclude: patterns. Notices: patterns that match no layer."""
    steps = [(pattern, KEEP, "exclude") for pattern in exclude] + [(pattern, name, "include") for pattern, name in include]
    found, idle = dict(choices), []
    for pattern, name, which in steps:
        seeker = compiled(pattern, f"{which} pattern")
        hits = [layer for layer in found if seeker.search(layer)]
        found |= {layer: moved(found[layer], name, f"{which} {pattern}") for layer in hits}
        if not hits:
            idle.append(f"{which} pattern {pattern} matches none of the {len(found)} linears of the blocks")
    return found, idle
