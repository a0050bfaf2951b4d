"""Claim: merging ten rank-64 LoRAs takes little more than the bare float32 product of their factors.

    python benchmarks/products.py FOLDER [--blocks 1] [--rank 64] [--rounds 3]

For 1, 3 and 10 LoRAs on one block of real shapes (10 linears), weights in memory, the merge's own bands and threads: the bare
product by torch's addmm (MKL), the bare product and sum by oneDNN (engine/products.py), and the whole merge with its exact Gram
matrix, factors loaded. Medians over the rounds, all in one run. FOLDER needs about 0.2 GB.
"""
import argparse
import os
import statistics
import time
from pathlib import Path

from harness import table, write_files, write_recipe


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def time_tensor(change, weight, workers) -> dict[str, float]:
    """Seconds of each way on one tensor, whose values grow and do not matter."""
    from wan22_master.engine.bands import split
    from wan22_master.engine.merging.merge import merge_whole
    from wan22_master.engine.products import multiply

    joint, bands = change.joint, split(tuple(weight.shape))

    def by_addmm(rows) -> None:
        weight[slice(*rows)].addmm_(joint.up[slice(*rows)], joint.down)

    def by_onednn(rows) -> None:
        weight[slice(*rows)].add_(multiply(joint.up[slice(*rows)], joint.down_t))

    return {"addmm": seconds(lambda: workers.map(by_addmm, bands)), "onednn": seconds(lambda: workers.map(by_onednn, bands)),
            "merge": seconds(lambda: merge_whole(change, weight, workers.map))}


def one_round(plan, workers) -> dict[str, float]:
    """Seconds of each way over every block linear of the plan."""
    import torch
    from wan22_master.engine.merging.merge import load_change

    [expert], found = plan.experts, []
    for key in sorted(expert.block_linears):
        whats = [what for _, what in expert.contributions[key]]
        change = load_change(key, expert.specs[key], whats, torch.device("cpu"), expert.rules)
        found.append(time_tensor(change, torch.randn(expert.specs[key].shape), workers))
    return {way: sum(each[way] for each in found) for way in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    from wan22_master.engine.bands import Workers
    from wan22_master.engine.device import full_float32
    from wan22_master.engine.jobs.plan import plan_recipe
    from wan22_master.engine.recipes.recipe import load

    folder = asked.folder / f"products_{asked.blocks}_{asked.rank}"
    base, loras = write_files(folder, asked.blocks, 10, asked.rank)
    rows = []
    for count in (1, 3, 10):
        write_recipe(folder, base, loras[:count])
        with plan_recipe(load(folder / "recipe.json"), folder / "reports") as plan, Workers() as workers, full_float32():
            rounds = [one_round(plan, workers) for _ in range(asked.rounds + 1)][1:]     # the first one warms up
        median = {way: statistics.median(each[way] for each in rounds) for way in rounds[0]}
        rows.append([f"{count}", *(f"{median[way]:.2f}" for way in ("addmm", "onednn", "merge")),
                     *(f"{statistics.median(each[way] / each['merge'] for each in rounds):.2f}" for way in ("addmm", "onednn"))])
    print(f"{asked.blocks} block of real shapes, rank {asked.rank}, {asked.rounds} rounds, load {os.getloadavg()[0]:.1f}")
    table(["LoRAs", "addmm s", "oneDNN s", "merge s", "addmm / merge", "oneDNN / merge"], rows)


if __name__ == "__main__":
    main()
