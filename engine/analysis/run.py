"""All layers of a plan, a few at a time: read the LoRAs' factors, compare, forget. Kept by content, so that it is done once."""
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from ..bands import Workers
from ..device import full_float32
from ..jobs import report
from ..jobs.base_norms import recall_norms
from ..jobs.experts import ExpertPlan
from ..jobs.plan import Plan
from ..jobs.targets import RECORD as VERSION
from ..jobs.targets import recall
from ..precision import block_of
from ..progress import Clock, Progress, silent
from ..system import naming, processors, write_json
from . import shift
from .compare import compare
from .scratch import Scratch
from .section import METHOD, Found, Lora, tell

MOST_WORKERS = 3                                   # each holds one layer of every LoRA: 200 MB for ten of rank 64, 1 GB is the goal


def analyse(plan: Plan, *, reports: Path, should_stop: Callable[[], bool] = bool,
            on_progress: Callable[[Progress], None] = silent) -> dict:
    """The report with a "conflicts" section for every expert, from the LoRA files alone; no weight of a base is read.

    reports: folder where the analysis is kept, and where earlier readings of the base lie. should_stop is asked before every layer.
    Raises LoraError or TensorError for damaged values, Stopped.
    """
    with naming(str(reports), "made", "check the rights of the folder, or choose another"):
        Path(reports).mkdir(parents=True, exist_ok=True)
    clock, told = Clock(sum(_bytes(expert, key) for expert in plan.experts for key in expert.contributions), on_progress), []
    for expert in plan.experts:
        path = _path(reports, expert)
        kept = recall(path)
        if kept is None:
            found = _compare(expert, clock, should_stop)
            kept = {"version": VERSION, "conflicts": tell(found, _loras(expert), _blocks(expert)), "layers": _layers(found)}
            write_json(path, kept)
        else:
            clock.skip(sum(_bytes(expert, key) for key in expert.contributions))
        section = {**kept["conflicts"], "shift": _shift(kept["conflicts"], expert, reports)}
        told.append({"role": expert.role, "name": expert.source.name, "variant": expert.variant.title, "task": expert.variant.task,
                     "ledger": expert.ledgers, "conflicts": section})
    return report.assemble(plan, told)


def _compare(expert: ExpertPlan, clock: Clock, should_stop: Callable[[], bool]) -> list[Found]:
    """Every changed tensor, in the base's order."""
    keys, found, scratch = [key for key in expert.specs if key in expert.contributions], [], Scratch()
    with Workers(min(MOST_WORKERS, processors()), should_stop) as workers, full_float32():
        results = workers.each(lambda key: compare(key, expert.specs[key], expert.contributions[key], scratch), keys)
        for key, one in zip(keys, results, strict=True):
            found.append(one)
            clock.advance(_bytes(expert, key), expert.role, key, "analyse")
    return found


def _loras(expert: ExpertPlan) -> list[Lora]:
    """The entries of the recipe for this expert, those of strength 0 included."""
    return [Lora(entry, told["strength"], told["distillation"]) for entry, told in zip(expert.entries, expert.ledgers, strict=True)]


def _blocks(expert: ExpertPlan) -> int:
    return 1 + max((place[0] for key in expert.block_linears if (place := block_of(key))), default=-1)


def _layers(found: list[Found]) -> dict[str, dict]:
    """Per tensor, for programs: who changes it, and the upper triangle of the Gram matrix, row by row."""
    return {each.key: {"who": each.who, "gram": [row[place:] for place, row in enumerate(each.exact.gram.tolist())]}
            for each in found}


def _shift(section: dict, expert: ExpertPlan, reports: Path) -> dict | None:
    """Relative, where a reading of this merge or of this base lies in the reports folder; None where the base is unknown."""
    reading = report.recall_meter(reports, expert)
    if reading is not None:
        return shift.from_meter(reading["meter"])
    return shift.from_norms(section["moved"], section["kinds"], recall_norms(reports, expert.source), expert.block_linears)


def _bytes(expert: ExpertPlan, key: str) -> int:
    """Bytes of the LoRAs' tensors for one tensor of the base."""
    return sum(what.lora.header.entries[name].nbytes
               for _, what in expert.contributions[key] for module in what.modules for name in module.keys)


def _path(reports: Path, expert: ExpertPlan) -> Path:
    """Where the analysis of these LoRAs at these strengths is kept: it depends on the base's shapes, not on its weights."""
    parts = {key: [expert.specs[key].shape, [[who, what.strength, list(map(repr, what.modules))] for who, what in whats]]
             for key, whats in expert.contributions.items()}
    loras = [[asdict(each.entry), each.strength, each.distillation] for each in _loras(expert)]
    content = {"method": METHOD, "blocks": _blocks(expert), "loras": loras, "sha256": [told["sha256"] for told in expert.ledgers],
               "parts": parts}
    return Path(reports) / f"conflicts-{hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()}.json"
