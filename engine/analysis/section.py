"""The "conflicts" section of the report: what was found in every layer, by pair of LoRAs, by block, and over the whole expert."""
import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..merging.meter import Entry
from ..precision import KINDS, block_of
from .estimate import Stratum, excess
from .exact import Exact

METHOD = "conflicts_1"                             # a changed definition is a new name


@dataclass(frozen=True)
class Found:
    """One layer. who: entry numbers, in the order of `exact`; strata: by pair j < k, all pairs last; [] where not sampled."""

    key: str
    who: list[int]
    exact: Exact
    strata: list[Stratum]
    left_out: list[tuple[int, str, str]]


@dataclass(frozen=True)
class Lora:
    """One entry of the recipe as the section tells it. distillation: evidence that it is one, or None."""

    entry: Entry
    strength: float
    distillation: str | None


def tell(found: list[Found], loras: list[Lora], blocks: int) -> dict:
    """The section as JSON, without the relative shift, which needs the base (shift.py). blocks: of the model."""
    pairs = [(j, k) for j in range(len(loras)) for k in range(j + 1, len(loras))]
    by_block = defaultdict(list)
    for each in found:
        by_block[(block_of(each.key) or (None,))[0]].append(each)
    gram = _sum(found, len(loras), lambda each: each.exact.gram)
    groups = {"all": set(range(len(loras))), "distillation": {number for number, lora in enumerate(loras) if lora.entry.protected}}
    groups["rest"] = groups["all"] - groups["distillation"]
    return {
        "method": METHOD, "blocks": blocks, "kinds": list(KINDS),
        "rows": max((stratum.count for each in found for stratum in each.strata), default=0),
        "loras": [_tell_lora(lora, number, found, gram) for number, lora in enumerate(loras)],
        "gram": gram.tolist(),
        "pairs": _tell_pairs(pairs, gram, found),
        "by_block": [_tell_block(by_block[block], pairs, len(loras)) for block in range(blocks)],
        "moved": _moved(found, groups, blocks),
        "left_out": _tell_left_out(found, loras),
    }


def _by_pair(found: list[Found]) -> dict[tuple[int, int], list[Stratum]]:
    """Strata by pair of entry numbers."""
    met = defaultdict(list)
    for each in found:
        if each.strata:
            pairs = [(j, k) for place, j in enumerate(each.who) for k in each.who[place + 1:]]
            for pair, stratum in zip(pairs, each.strata[:-1], strict=True):
                met[pair].append(stratum)
    return met


def _sum(found: list[Found], count: int, of: Callable[[Found], torch.Tensor | None]) -> torch.Tensor:
    """Sum over layers of small matrices, laid out by entry number: (count, count) float64."""
    total = torch.zeros(count, count, dtype=torch.float64)
    for each in found:
        if (small := of(each)) is not None:
            place = torch.tensor(each.who)
            total[place[:, None], place[None, :]] += small
    return total


def _cosine(gram: torch.Tensor, j: int, k: int) -> float | None:
    """gram[j, k] / √(gram[j, j] gram[k, k]), within -1..1; None where one is zero."""
    norms = math.sqrt(max(gram[j, j].item(), 0.0)) * math.sqrt(max(gram[k, k].item(), 0.0))
    return max(-1.0, min(1.0, gram[j, k].item() / norms)) if norms > 0 else None


def _tell_pairs(pairs: list[tuple[int, int]], gram: torch.Tensor, found: list[Found]) -> list[dict]:
    met = _by_pair(found)
    outputs, inputs = (_sum(found, len(gram), of) for of in (lambda each: each.exact.outputs, lambda each: each.exact.inputs))
    shared = defaultdict(int)
    for each in found:
        for place, j in enumerate(each.who):
            for k in each.who[place + 1:]:
                shared[j, k] += 1
    told = []
    for j, k in pairs:
        estimate = excess(met[j, k])
        told.append({"first": j, "second": k, "tensors": shared[j, k], "cosine": _cosine(gram, j, k),
                     "overlap_out": _cosine(outputs, j, k), "overlap_in": _cosine(inputs, j, k),
                     **(estimate.to_json() if estimate else dict.fromkeys(("conflict", "chance", "excess", "se")))})
    return told


def _tell_block(found: list[Found], pairs: list[tuple[int, int]], count: int) -> dict:
    """One block: all pairs together, and each pair in the order of "pairs"; null where no two LoRAs meet."""
    gram, met = _sum(found, count, lambda each: each.exact.gram), _by_pair(found)
    together = excess([each.strata[-1] for each in found if each.strata])
    estimates = [excess(met[pair]) for pair in pairs]
    return {"excess": together and together.excess, "se": together and together.se,
            "cosines": [_cosine(gram, j, k) for j, k in pairs],
            "excesses": [each and each.excess for each in estimates], "ses": [each and each.se for each in estimates]}


def _moved(found: list[Found], groups: dict[str, set[int]], blocks: int) -> dict:
    """‖Σ s δ‖ of each group of LoRAs over everything, and of all of them by block and kind ("cells")."""
    def moved(members: set[int], some: list[Found]) -> float:
        inside = [(each, torch.tensor([who in members for who in each.who])) for each in some]
        return math.sqrt(max(0.0, math.fsum(each.exact.gram[mine][:, mine].sum().item() for each, mine in inside)))

    cells = defaultdict(list)
    for each in found:
        cells[block_of(each.key)].append(each)
    table = [[moved(groups["all"], cells[block, kind]) for kind in KINDS] for block in range(blocks)]
    return {name: moved(members, found) for name, members in groups.items()} | {"cells": table}


def _tell_lora(lora: Lora, number: int, found: list[Found], gram: torch.Tensor) -> dict:
    return {"name": lora.entry.name, "pass": lora.entry.pass_name, "strength": lora.strength, "protected": lora.entry.protected,
            "distillation": lora.distillation, "norm": math.sqrt(max(gram[number, number].item(), 0.0)),
            "tensors": sum(number in each.who for each in found)}


def _tell_left_out(found: list[Found], loras: list[Lora]) -> list[dict]:
    """Modules that are not in any number here, counted by LoRA, kind and reason."""
    counts = defaultdict(int)
    for each in found:
        for left in each.left_out:
            counts[left] += 1
    return [{"lora": loras[who].entry.name, "kind": kind, "reason": reason, "tensors": count}
            for (who, kind, reason), count in counts.items()]
