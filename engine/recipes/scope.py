"""How strong a LoRA is in which part of the model: factors by block and by kind of layer, as a recipe and a widget write them.

    {"0-8": 0.5, "structure": 0, "ffn": 0.8}        or as text:  0-8: 0.5, structure: 0, ffn: 0.8
strength of a tensor = strength of the LoRA * (factor of the narrowest range that holds its block) * (factor of its kind); 1 where
nothing is said. The order does not matter; two ranges of one width that overlap are refused. structure, motion and aesthetic are
the block ranges of the original engine's heat map (commit 246619b).
"""
import re
from collections.abc import Mapping

PRESETS = {"structure": (0, 8), "motion": (9, 30), "aesthetic": (31, 39)}
KINDS = ("self_attn", "cross_attn", "ffn", "other")
RANGE = re.compile(r"(\d{1,3})(?:\s*-\s*(\d{1,3}))?")
BLOCK = re.compile(r"(?:vace_)?blocks\.(\d+)\.(\w+)")


def span(name: str) -> tuple[int, int] | None:
    """First and last block that `name` means; None when it names a kind. Raises ValueError for anything else."""
    if name in KINDS:
        return None
    if name in PRESETS:
        return PRESETS[name]
    found = RANGE.fullmatch(name)
    first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
    if first > last:
        raise ValueError(f"{name!r} is neither a range of blocks such as 0-8 nor one of {', '.join([*PRESETS, *KINDS])}")
    return first, last


def factor(scope: Mapping[str, float], key: str) -> float:
    """What the strength of a LoRA is multiplied by at `key`, native and bare. scope: checked names -> factors."""
    found = BLOCK.match(key)
    kind = found[2] if found and found[2] in KINDS else "other"
    ranges = [(where[1] - where[0], value) for name, value in scope.items()
              if (where := span(name)) is not None and found and where[0] <= int(found[1]) <= where[1]]
    return min(ranges, default=(0, 1.0))[1] * scope.get(kind, 1.0)


def check(scope: Mapping[str, float]) -> None:
    """Raise ValueError for a name that means nothing, or for two ranges of one width that hold the same block."""
    ranges = [(name, where) for name in scope if (where := span(name)) is not None]
    for place, (name, (first, last)) in enumerate(ranges):
        for other, (start, stop) in ranges[:place]:
            if stop - start == last - first and start <= last and first <= stop:
                raise ValueError(f"{other!r} and {name!r} are equally wide and share blocks: which of them counts is not clear")


def parse(text: str) -> dict[str, float]:
    """The scope in a line of text; empty text is no scope. Raises ValueError: the part that is wrong, and what was expected."""
    scope: dict[str, float] = {}
    for part in filter(None, (each.strip() for each in re.split(r"[,;\n]", text))):
        name, _, value = (each.strip() for each in part.partition(":"))
        span(name)
        if name in scope:
            raise ValueError(f"{part!r}: {name} is there twice")
        try:
            scope[name] = float(value)
        except ValueError:
            raise ValueError(f"{part!r}: expected a range or kind, a colon and a number, such as 0-8: 0.5") from None
    check(scope)
    return scope


def write(scope: Mapping[str, float]) -> str:
    """The text that `parse` reads back."""
    return ", ".join(f"{name}: {value:g}" for name, value in scope.items())
