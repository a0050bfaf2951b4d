"""Claim: the adaptive gate of ten rank-64 LoRAs costs at most 2.5 times the merge's own product, once; and little memory.

    python benchmarks/adaptive.py FOLDER [--blocks 1] [--loras 10] [--rank 64]

On files of real shapes (10 linears a block), in a process of its own: the measuring step (`store.ensure`), then loading the gated
factors of every tensor (`gated_factors`), against the bare float32 product of the same factors over the same bands and threads
with the weights in memory. Peak = max of RssAnon + RssShmem minus its value after `import torch`, at most 1.2 GB. FOLDER needs
about 0.8 GB a block and 10 LoRAs. Linux only.
"""
import argparse
import json
import sys
import time
from pathlib import Path

from harness import clear, table, watch, write_files, write_recipe


def bare_product(expert, rank: int) -> float:
    """Seconds of addmm of all factors side by side over every measured tensor, band by band, on the merge's threads."""
    import torch
    from wan22_master.engine.bands import Workers, split

    seconds = 0.0
    with Workers() as workers:
        for key, whats in expert.contributions.items():
            shape = expert.specs[key].shape
            weight = torch.randn(shape)
            up, down = torch.randn(shape[0], rank * len(whats)), torch.randn(rank * len(whats), shape[1])
            start = time.perf_counter()
            workers.map(lambda rows, w=weight, u=up, d=down: w[rows[0]:rows[1]].addmm_(u[rows[0]:rows[1]], d) is None, split(shape))
            seconds += time.perf_counter() - start
    return seconds


def child(folder: Path, what: str, rank: int) -> None:
    """One timed part in a process of its own."""
    import torch

    print("ready", flush=True)
    from wan22_master.engine.jobs.carry import Ride
    from wan22_master.engine.jobs.plan import plan_recipe
    from wan22_master.engine.merging.adaptive.apply import gated_factors
    from wan22_master.engine.merging.adaptive.store import ensure
    from wan22_master.engine.progress import Clock, silent
    from wan22_master.engine.recipes.recipe import load

    reports = folder / "reports"
    reports.mkdir(exist_ok=True)
    with plan_recipe(load(folder / "recipe.json"), reports) as plan, torch.inference_mode():
        [expert] = plan.experts
        expert.contributions = {key: whats for key, whats in expert.contributions.items() if len(expert.specs[key].shape) == 2}
        if what == "product":
            return print(json.dumps(bare_product(expert, rank)))
        start = time.perf_counter()
        ensure(expert, Ride(plan.device, Clock(1, silent), bool, reports))
        if what == "apply":
            start = time.perf_counter()
            for key, whats in expert.contributions.items():
                gated_factors(key, expert.specs[key].shape, [each for _, each in whats], torch.device("cpu"))
        print(json.dumps(time.perf_counter() - start))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--loras", type=int, default=10)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--child", choices=["measure", "apply", "product"], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return child(asked.folder, asked.child, asked.rank)
    folder = asked.folder / f"adaptive_{asked.blocks}_{asked.rank}"
    base, loras = write_files(folder, asked.blocks, asked.loras, asked.rank)
    write_recipe(folder, base, loras, method="adaptive")
    clear(folder)
    rows, said = [], {}
    for what in ("product", "measure", "apply"):   # apply finds the measurement made
        said[what], peak = watch([sys.executable, __file__, str(folder), "--child", what, "--rank", str(asked.rank)])
        rows.append([what, f"{said[what]:.1f}", f"{said[what] / said['product']:.2f}", f"{peak / 1e6:.0f}"])
    table(["part", "s", "x the merge's product", "peak MB"], rows)
    stored = sum(path.stat().st_size for path in (folder / "reports").glob("adaptive-*"))
    print(f"{asked.blocks} blocks, {asked.loras} LoRAs of rank {asked.rank}; stored {stored / 1e6:.0f} MB")
    print("goals: measure 2.5 x, 1200 MB")


if __name__ == "__main__":
    main()
