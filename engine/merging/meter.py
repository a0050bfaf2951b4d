"""The stability meter: how far the merge moved the model, from the report rows of its tensors.

    shift = sqrt( sum ||W' - W||^2 over everything merged / sum ||W||^2 over all block linears ),  W' before rounding
    shift_touched = the same divided by the tensors that were merged alone

Needles: all; distillation, the LoRAs added exactly to shorten sampling; rest, everything but those. The word judges the rest: a
distillation LoRA moves the model far because it has to.
STABLE < 0.015 <= SATURATED <= 0.030 < VOLATILE: the seed project's scale. `legacy` is the number the original engine printed beside
that scale, |mean over tensors of mean|W'| - mean over tensors of mean|W||: it is near zero for any delta of zero mean, whatever its
size, so it is shown and not judged. All passes count as one in it.
"""
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from ..precision import KINDS, block_of

STABLE_BELOW, VOLATILE_ABOVE = 0.015, 0.030        # README of the original, "Stability Reference Scale"
TOP = 12                                           # most moved layers that a report names
SMALLEST = 2.0 ** -149                            # float32's smallest positive value


def status(shift: float, stable_below: float = STABLE_BELOW, volatile_above: float = VOLATILE_ABOVE) -> str:
    """The word for a shift."""
    return "STABLE" if shift < stable_below else "VOLATILE" if shift > volatile_above else "SATURATED"


def ratio(moved: float, base: float) -> float:
    """sqrt(moved / base); where the base is all zero, huge but finite, as JSON knows no infinity."""
    return math.sqrt(moved / max(base, SMALLEST))


@dataclass(frozen=True)
class Entry:
    """One LoRA of one pass, as the rows number them. protected: added exactly (a distillation LoRA)."""

    name: str
    pass_number: int
    pass_name: str
    protected: bool = False


def summarize(rows: dict[str, dict], entries: list[Entry], block_linears: set[str], tensors: int) -> dict:
    """The meter section of the report.

    rows: key -> {"base": ||W||^2, and where merged "who": entry numbers, "gram": <delta_i, delta_j>, in that order; where that is
    not all "moved", "rest" (alteration.Energies); where measured "mean_abs": [before, after]}; block_linears: keys of the
    denominator; tensors: of the whole model, for the legacy number.
    """
    all_base = math.fsum(row["base"] for key, row in rows.items() if key in block_linears)
    merged = {key: row for key, row in rows.items() if "gram" in row}
    moved = {key: row["moved"] if "moved" in row else _length2(row["gram"], range(len(row["gram"]))) for key, row in merged.items()}
    touched = math.fsum(row["base"] for row in merged.values())
    shift = ratio(math.fsum(moved.values()), all_base)
    numbered = sorted({(entry.pass_number, entry.pass_name) for entry in entries})
    passes = [(name, {who for who, entry in enumerate(entries) if entry.pass_number == number}) for number, name in numbered]
    means = [row["mean_abs"] for row in merged.values() if "mean_abs" in row]
    needles = {"all": shift, **_needles(merged, entries, all_base)}
    return {
        "shift": shift, "shift_touched": ratio(math.fsum(moved.values()), touched), "status": status(needles["rest"]),
        "needles": needles,
        "stable_below": STABLE_BELOW, "volatile_above": VOLATILE_ABOVE,
        "legacy": abs(math.fsum(after - before for before, after in means)) / tensors if len(means) == len(merged) else None,
        "loras": [{"name": entry.name, "pass": entry.pass_name, "shift": ratio(_energy(merged, {number}), all_base),
                   "protected": entry.protected} for number, entry in enumerate(entries)],
        "passes": [{"name": name, "shift": ratio(_energy(merged, members), all_base)} for name, members in passes],
        **_by_block(rows, moved),
        "top": [{"layer": key.removesuffix(".weight"), "shift": ratio(moved[key], merged[key]["base"])}
                for key in sorted(moved, key=lambda key: -ratio(moved[key], merged[key]["base"]))[:TOP]],
    }


def _needles(merged: dict[str, dict], entries: list[Entry], all_base: float) -> dict[str, float]:
    """Shift by the protected LoRAs, and by everything else."""
    protected = {number for number, entry in enumerate(entries) if entry.protected}
    others = set(range(len(entries))) - protected
    rest = math.fsum(row["rest"] if "rest" in row else _energy({key: row}, others) for key, row in merged.items())
    return {"distillation": ratio(_energy(merged, protected), all_base), "rest": ratio(rest, all_base)}


def _energy(merged: dict[str, dict], chosen: set[int]) -> float:
    """Sum over keys of ||sum of the chosen entries' deltas||^2."""
    return math.fsum(_length2(row["gram"], [place for place, number in enumerate(row["who"]) if number in chosen])
                     for row in merged.values())


def _length2(gram: list[list[float]], places: Sequence[int]) -> float:
    """||sum of the deltas at these places||^2. Deltas that nearly cancel may leave less than 0: its products are float32's."""
    return max(0.0, math.fsum(gram[i][j] for i in places for j in places))


def _by_block(rows: dict[str, dict], moved: dict[str, float]) -> dict:
    base, delta = defaultdict(list), defaultdict(list)
    for key, row in rows.items():
        if (where := block_of(key)) is not None:
            base[where].append(row["base"])
            delta[where].append(moved.get(key, 0.0))
    blocks = 1 + max((block for block, _ in base), default=-1)
    cells = [[ratio(math.fsum(delta[n, kind]), math.fsum(base[n, kind])) for kind in KINDS] for n in range(blocks)]
    return {"blocks": blocks, "kinds": list(KINDS), "cells": cells}
