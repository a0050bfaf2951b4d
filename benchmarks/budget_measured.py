"""Claim: on a real-size expert a budget is met within 1 %, with at most the error of each preset at its size, errors measured.

    python benchmarks/budget_measured.py FOLDER [--blocks 40] [--rank 64]

Writes one expert of real shapes (28.6 GB at 40 blocks, deleted at the end) and a LoRA, tries the formats of each class of card on
256 rows of every layer of the merge, and solves 9, 11 and 13 GB, and each preset's own size.
"""
import argparse
import json
import shutil
import time
from pathlib import Path

from harness import clear, table, write_files, write_recipe

CARDS = {"rtx50": "blackwell", "rtx40": "ada", "rtx30": "ampere"}
BUDGETS = (9.0, 11.0, 13.0)                        # GB of a 14B expert
REST = 0.48                                        # GB of it that no format changes, in bf16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--rank", type=int, default=64)
    asked = parser.parse_args()
    from wan22_master.engine.jobs.plan import plan_recipe
    from wan22_master.engine.jobs.solve import error_of, predicted, solve
    from wan22_master.engine.plans.presets import NAMES
    from wan22_master.engine.plans.request import PlanRequest
    from wan22_master.engine.recipes.recipe import load
    from wan22_master.quant.formats import DEFAULT

    folder, rows = asked.folder / "budget", []
    base, loras = write_files(folder, asked.blocks, 1, asked.rank)
    recipe = write_recipe(folder, base, loras)
    recipe.write_text(json.dumps({**json.loads(recipe.read_text()), "outputs": []}))
    with plan_recipe(load(recipe), folder / "reports") as plan:
        [expert] = plan.experts

        def solved(card: str, gigabytes: float) -> tuple[float, float]:
            """(GB without the header, error)."""
            found = solve(plan, PlanRequest(budget_gb=gigabytes, card=card), reports=folder / "reports")
            choices = found.plan.experts[expert.role]
            return predicted(expert, choices, "source", None, DEFAULT) / 1e9, error_of(choices, found.trials[expert.role])

        for card, hardware in CARDS.items():
            start = time.perf_counter()
            for whole in BUDGETS:
                budget = round(REST + (whole - REST) * asked.blocks / 40, 3)
                size, error = solved(card, budget)
                if not 0.99 * budget <= size <= budget:
                    raise SystemExit(f"{card}: {size:.3f} GB for a budget of {budget:.3f}")
                rows.append([card, f"{budget:g} GB", f"{size:.3f}", f"{error:.4f}", ""])
            for name in NAMES:                     # promote_below 0 raises nothing, and has the preset's formats tried
                request = PlanRequest(preset=name, hardware=hardware, card=card, promote_below=0.0)
                found = solve(plan, request, reports=folder / "reports")
                choices = found.plan.experts[expert.role]
                size = predicted(expert, choices, "source", None, DEFAULT) / 1e9
                error = error_of(choices, found.trials[expert.role])
                _, ours = solved(card, size)
                if ours > error * (1 + 1e-6):
                    raise SystemExit(f"{card}: {name} has {error}, the solver {ours} at {size} GB")
                rows.append([card, name, f"{size:.3f}", f"{ours:.4f}", f"{error:.4f}"])
            rows[-1][1] += f" ({time.perf_counter() - start:.0f} s for the card)"
    clear(folder)
    shutil.rmtree(folder)
    table(["card", "asked", "GB", "error of the solver", "of the preset"], rows)


if __name__ == "__main__":
    main()
