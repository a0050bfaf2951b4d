"""Claim: a calibration cuts held-out output error by a fifth at the same format and size, and its budgets beat the presets.

    COMFYUI/.venv/bin/python benchmarks/calibration_gain.py COMFYUI MODELS FOLDER [--picture docs/calibration.svg]

MODELS: folder of tiny_trained.py; what is measured stands in calibrated_pair.py. Errors are means of the 16 with their standard
error; a change has that of the 16 changes. Files of one format: products in 16 bit. Plans: inputs rounded as the card does it, with
input scales of the same calibration for every plan; a budget is given the bytes of the preset, or of the mix of GGUF, and chooses
by the error of weights, or by that of outputs and with weighed columns. Results stay in FOLDER/gain.json; --again measures anew.
"""
import argparse
import dataclasses
import json
import statistics
from pathlib import Path

import harness
import torch
from calibrated_pair import CalibratedPair, rounding
from calibration_gain_picture import draw
from tiny_comfyui import ROLES, start

FILES = {"nvfp4 balanced": ("nvfp4", {}), "nvfp4 best": ("nvfp4", {"search": "best"}),
         "Q4_K": ("Q4_K", {}), "Q3_K": ("Q3_K", {}), "Q2_K": ("Q2_K", {})}
# The other presets make the same files as one of these.
PRESETS = (("rtx50", "blackwell", "speed"), ("rtx50", "blackwell", "balanced"), ("rtx40", "ada", "speed"),
           ("rtx40", "ada", "balanced"), ("rtx30", "ampere", "speed"), ("cpu", "any", "balanced"), ("cpu", "any", "quality"))
MIXES = ("Q3_K_M", "Q4_K_M", "Q5_K_M")
PLANS = ("preset", "by weights", "by outputs")
HEADER = 4096                                      # bytes by which headers of equal files may differ: metadata names the weights


def files(bench: CalibratedPair) -> list[dict]:
    """Every format, plain and weighed."""
    from wan22_master.engine.recipes.output import Output

    rows = []
    for label, (name, settings) in FILES.items():
        found = [bench.written(Output(name, imatrix=imatrix, **settings)) for imatrix in ({}, bench.weights)]
        sizes = [size for _, size in found]
        if abs(sizes[1] - sizes[0]) > HEADER:
            raise SystemExit(f"{label}: expected files of one size, found {sizes}")
        errors = [bench.output_errors(weights) for weights, _ in found]
        latent = [bench.latent_errors(weights).tolist() for weights, _ in found]
        rows.append({"format": label, "MB": sizes[0] / 1e6, "output": errors, "latent": latent})
        print(label, gains(rows[-1]), flush=True)
    return rows


def gains(row: dict) -> list[str]:
    """Cells of one format: medians, change of the median layer, of the root of the sum of squares, of the worst; latents."""
    plain, weighed = row["output"]
    changes = [after / before - 1 for before, after in zip(plain, weighed, strict=True)]
    total = (sum(error ** 2 for error in weighed) / sum(error ** 2 for error in plain)) ** 0.5 - 1
    return [f"{statistics.median(plain):.4f}", f"{statistics.median(weighed):.4f}", f"{statistics.median(changes):+.1%}",
            f"{total:+.1%}", f"{max(changes):+.1%}", *map(told, row["latent"]), change(*row["latent"])]


def requests() -> dict[tuple[str, str], tuple]:
    """(card, plan) -> (request of a preset or a mix, what a budget for the same is besides)."""
    from wan22_master.engine.plans.request import PlanRequest

    found = {(card, name): (PlanRequest(preset=name, hardware=hardware), {"card": card}) for card, hardware, name in PRESETS}
    return found | {("gguf", name): (PlanRequest(format=name, container="gguf"), {"container": "gguf"}) for name in MIXES}


def plans(bench: CalibratedPair) -> list[dict]:
    """Presets of some cards, and mixes of GGUF, against budgets of their own bytes."""
    from wan22_master.engine.jobs.solve import predicted, solve
    from wan22_master.engine.plans.as_output import as_output
    from wan22_master.engine.plans.request import PlanRequest
    from wan22_master.quant.formats import DEFAULT

    rows, reports = [], bench.folder / "reports"
    for (card, name), (request, wish) in requests().items():
        with bench.planned() as plan:
            preset = solve(plan, request, reports=reports).plan
            size = max(predicted(expert, preset.experts[expert.role], "source", None, DEFAULT) for expert in plan.experts)
            budget = PlanRequest(budget_gb=size / 1e9, **wish)
            by_weights, by_outputs = (solve(plan, budget, reports=reports, calibration=each).plan for each in (None, bench.inputs))
        row = {"card": card, "plan": name, "MB": size / 1e6}
        for label, made, imatrix in zip(PLANS, (preset, by_weights, by_outputs), ({}, {}, bench.weights), strict=True):
            output = dataclasses.replace(as_output(made), imatrix=imatrix)
            row[label] = bench.latent_errors(bench.written(output)[0], rounding(bench, made.experts, card)).tolist()
            print(card, name, label, told(row[label]), flush=True)
        rows.append(row)
    return rows


def told(errors: list[float]) -> str:
    """Mean and standard error."""
    return f"{statistics.mean(errors):.4f} ± {statistics.stdev(errors) / len(errors) ** 0.5:.4f}"


def change(before: list[float], after: list[float]) -> str:
    """Of the mean, with the standard error of the changes of single latents."""
    ratios = [new / old - 1 for old, new in zip(before, after, strict=True)]
    return f"{statistics.mean(after) / statistics.mean(before) - 1:+.1%} ± {statistics.stdev(ratios) / len(ratios) ** 0.5:.1%}"


def show(found: dict) -> None:
    harness.table(["format", "MB of both", "plain", "weighed", "median", "total", "worst", "latent plain", "weighed", "change"],
                  [[row["format"], f"{row['MB']:.2f}", *gains(row)] for row in found["files"]])
    rows = [[row["card"], row["plan"], f"{row['MB']:.2f}", *(told(row[label]) for label in PLANS),
             *(change(row[label], row[PLANS[-1]]) for label in PLANS[:-1])] for row in found["plans"]]
    harness.table(["card", "plan", "MB of one", *PLANS, "outputs over preset", "outputs over weights"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comfyui")
    parser.add_argument("models", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--again", action="store_true")
    asked = parser.parse_args()
    kept = asked.folder / "gain.json"
    if asked.again or not kept.exists():
        asked.folder.mkdir(parents=True, exist_ok=True)
        start(asked.comfyui, asked.folder)
        with torch.inference_mode():
            bench = CalibratedPair({role: str(asked.models / f"tiny_{role}.safetensors") for role in ROLES}, asked.folder)
            kept.write_text(json.dumps({"files": files(bench), "plans": plans(bench)}))
    found = json.loads(kept.read_text())
    show(found)
    if asked.picture:
        draw(found, asked.picture)


if __name__ == "__main__":
    main()
