"""The one report: ledger, meter, error, outputs, as versioned JSON. One writer, one schema; nodes and web only read it."""
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...quant.backend import backend
from ..merging.meter import summarize
from ..system import write_json
from ..version import ENGINE, MERGE
from .experts import ExpertPlan
from .targets import RECORD as VERSION
from .targets import done_record, recall

if TYPE_CHECKING:
    from .plan import Plan


def tell_expert(expert: ExpertPlan, rows: dict[str, dict], files: list[dict], cost: dict) -> dict:
    """One expert's section. rows: key -> report row; files: finished outputs; cost: seconds, bytes_per_s, peak_bytes."""
    who = {key: [number for number, _ in whats] for key, whats in expert.contributions.items()}
    told = {key: {**row, "who": who[key]} if "gram" in row else row for key, row in rows.items()}
    ledger = [dict(entry) for entry in expert.ledgers]
    for number, entry in enumerate(ledger):
        entry["gates"] = _gates(told, number)
    meter = summarize(told, expert.entries, expert.block_linears, len(expert.specs))
    return {"role": expert.role, "name": expert.source.name, "variant": expert.variant.title, "task": expert.variant.task,
            "ledger": ledger, "meter": meter, "outputs": files, **cost}


def _gates(rows: dict[str, dict], number: int) -> dict | None:
    """How the gate treated one LoRA: tensors by tier, limiter hits, mean share of elements kept; None when nothing was gated."""
    mine = [gate for row in rows.values() if "gram" in row for place, gate in zip(row["who"], row["gates"], strict=True)
            if place == number and gate.get("tier")]
    if not mine:
        return None
    return {"new": sum(gate["tier"] == "new" for gate in mine), "refine": sum(gate["tier"] == "refine" for gate in mine),
            "limited": sum(bool(gate["limit_hit"]) for gate in mine), "kept": sum(gate["kept"] for gate in mine) / len(mine)}


def assemble(plan: "Plan", experts: list[dict]) -> dict:
    """The whole report."""
    return {"version": VERSION, "engine": ENGINE, "merge": MERGE, "nvfp4_encoder": backend(),
            "title": plan.recipe.title, "device": plan.device.note,
            "recipe": plan.recipe.to_json(), "notices": plan.notices, "experts": experts}


def save(reports: Path, whole: dict) -> Path:
    """Write the whole report into the reports folder; one file per set of outputs, written again when they are asked for again."""
    jobs = sorted(out["job_id"] for expert in whole["experts"] for out in expert["outputs"])
    path = Path(reports) / f"report-{hashlib.sha256(json.dumps(jobs).encode()).hexdigest()}.json"
    write_json(path, whole)
    return path


def keep(reports: Path, told: dict) -> None:
    """Remember each finished output, so that the same job is not done twice, and can still show its report."""
    for out in told["outputs"]:
        stat = os.stat(out["path"])
        record = {"version": VERSION, "target": os.path.realpath(out["path"]), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        write_json(done_record(reports, out["job_id"]), {**record, "expert": {**told, "outputs": [out]}})


def with_finished(reports: Path, expert: ExpertPlan, told: dict) -> dict:
    """`told` with the outputs that earlier runs finished, in the plan's order."""
    now = {out["job_id"]: out for out in told["outputs"]}
    for out in expert.outputs:
        if out.target.state in {"done", "renamed"}:
            earlier = recall(done_record(reports, out.job_id))["expert"]
            now[out.job_id] = {**earlier["outputs"][0], "up_to_date": True}
            told = {**earlier, **told}
    return {**told, "outputs": [now[out.job_id] for out in expert.outputs if out.job_id in now]}   # others failed


def content_of(expert: ExpertPlan) -> dict:
    """All that decides what is merged into this expert, as JSON: what rests on it is kept by its hash."""
    asked = [(key, number, [*map(repr, what.modules)], repr(replace(what, lora=None, modules=[], gated=None)))
             for key, whats in sorted(expert.contributions.items()) for number, what in whats]
    return {"merge": MERGE, "role": expert.role, "source": expert.source.identity()["files"], "ledger": expert.ledgers,
            "passes": [entry.pass_number for entry in expert.entries], "asked": asked, "rules": repr(expert.rules)}


def _meter_path(reports: Path, expert: ExpertPlan) -> Path:
    digest = hashlib.sha256(json.dumps(content_of(expert), sort_keys=True).encode()).hexdigest()
    return Path(reports) / f"meter-{digest}.json"


def recall_meter(reports: Path, expert: ExpertPlan) -> dict | None:
    """An earlier reading of the same base, LoRAs, strengths and methods; None when there is none."""
    said = recall(_meter_path(reports, expert))
    return said and said["expert"]


def keep_meter(reports: Path, expert: ExpertPlan, told: dict) -> None:
    """Remember a reading by its content."""
    write_json(_meter_path(reports, expert), {"version": VERSION, "expert": told})
