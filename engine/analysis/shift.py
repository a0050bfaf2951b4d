"""The predicted shift: how far the LoRAs move the model, over ‖W‖ where an earlier reading of the base knows it.

    shift = ‖Σ s δ‖ over everything / ‖W‖ over all block linears,   a cell: the same over one block and kind

as the stability meter defines it (meter.py), for plain addition. Where the meter has measured this very merge, its own numbers,
gates included, take the place of the prediction.
"""
import math
from collections import defaultdict

from ..precision import block_of

METER, NORMS = "stability meter", "base norms"


def from_norms(moved: dict, kinds: list[str], norms: dict[str, float], block_linears: set[str]) -> dict | None:
    """The shift of each group and cell; None unless norms (key -> ‖W‖²) has every block linear. moved: as in the section."""
    if not block_linears or not block_linears <= norms.keys():
        return None
    squares = defaultdict(list)
    for key in block_linears:
        squares[block_of(key)].append(norms[key])
    whole = math.fsum(norms[key] for key in block_linears)
    cells = [[_over(value, math.fsum(squares[block, kind])) for kind, value in zip(kinds, row, strict=True)]
             for block, row in enumerate(moved["cells"])]
    return {"from": NORMS, **{group: _over(moved[group], whole) for group in ("all", "distillation", "rest")}, "cells": cells}


def from_meter(meter: dict) -> dict:
    """What the stability meter found; a reading of an older version knows only the whole."""
    needles = {"all": meter["shift"], "distillation": None, "rest": None} | meter.get("needles", {})
    return {"from": METER, **needles, "cells": meter["cells"]}


def _over(moved: float, square: float) -> float | None:
    return moved / math.sqrt(square) if square > 0 else None
