"""JSON written by a stranger, read with bounded memory and none of Python's leniency.

Python's reader takes what RFC 8259 leaves open or forbids: the last of two equal keys, half a surrogate pair, numbers of
any length, any depth until RecursionError. A header or an index that uses one of these is damaged or hostile.
"""
import json

MAX_BRACKETS = 800_000  # 200,000 tensors at one "{" and two "[" each, and as much again
MAX_COMMAS = 3_200_000  # 16 axes for each of them


def parse(body: bytes) -> dict:
    """The JSON object in `body` (UTF-8). Whole numbers come as int, every other number as float.

    Raises ValueError saying what is wrong: not UTF-8, not JSON, not an object, a key twice, nested too deep, too many parts.
    """
    # Counted first: bytes that are nothing but brackets would grow 30-fold in memory once parsed.
    if body.count(b"{") + body.count(b"[") > MAX_BRACKETS or body.count(b",") > MAX_COMMAS:
        raise ValueError(f"more than {MAX_BRACKETS} brackets or {MAX_COMMAS} commas")
    try:
        found = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_int=_number)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(found, dict):
        raise ValueError("not an object")
    return found


def is_text(name: str) -> bool:
    """False for half a surrogate pair, which is a str to Python's reader but cannot be written to any file again."""
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def _unique(pairs: list[tuple[str, object]]) -> dict:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"key {twice[:100]!r} occurs twice")
    return found


def _number(digits: str) -> int | float:
    """An int where a count can be meant: not below 0 and short enough for 64 bits; "-0" too is no count."""
    return int(digits) if len(digits) <= 20 and not digits.startswith("-") else float(digits)
