"""Claim: several files of one merge cost little more than the slowest of them alone.

    python benchmarks/outputs.py FOLDER [--blocks 4] [--loras 2] [--rounds 3] [--formats nvfp4 float8_e4m3fn mxfp8]

Each format alone, all together, and the merge alone (measured, nothing written), every job in a process of its own from a cold
base, rounds alternating, medians. Goals: together <= 1.3 of the slowest alone; together <= 1.1 of (merge + each encoder's own
time, which is its job less the merge); at most 1.5 GB (peak of RssAnon + RssShmem less its value after `import torch`). Linux only.
"""
import argparse
import json
import shutil
import statistics
import sys
import time
from pathlib import Path

from harness import chill, clear, run_job, table, watch, write_files, write_recipe

MERGE = "merge alone"


def child(folder: Path, formats: list[str]) -> None:
    """One job; prints its seconds and the error of each file."""
    import torch  # noqa: F401 - the yardstick starts after it

    print("ready", flush=True)
    if formats == [MERGE]:
        print(json.dumps({"wall": merge_alone(folder), "errors": {}}))
        return
    told = run_job(folder)
    print(json.dumps({"wall": told["wall"], "errors": {out["label"]: out["error"] for out in told["outputs"]}}))


def merge_alone(folder: Path) -> float:
    """Seconds of the line without outputs."""
    from wan22_master.engine.jobs.plan import plan_recipe
    from wan22_master.engine.jobs.run import measure
    from wan22_master.engine.recipes.recipe import load

    start = time.perf_counter()
    with plan_recipe(load(folder / "recipe.json"), folder / "reports") as plan:
        measure(plan, reports=folder / "reports")
    return time.perf_counter() - start


def one(folder: Path, base: Path, loras: list[Path], formats: list[str]) -> tuple[float, int, dict]:
    """(seconds, peak bytes, errors) of one job."""
    recipe = write_recipe(folder, base, loras)
    said = json.loads(recipe.read_text())
    recipe.write_text(json.dumps({**said, "outputs": [{"format": name} for name in formats if name != MERGE]}))
    clear(folder)
    chill(base)
    told, peak = watch([sys.executable, __file__, str(folder), "--child", *formats])
    clear(folder)
    return told["wall"], peak, told["errors"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--loras", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--formats", nargs="+", default=["nvfp4", "float8_e4m3fn", "mxfp8"])
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return child(asked.folder, asked.child)
    folder = asked.folder / "outputs"
    base, loras = write_files(folder, asked.blocks, asked.loras)
    jobs = {MERGE: [MERGE], **{name: [name] for name in asked.formats}, "together": asked.formats}
    seconds, peaks, errors = {name: [] for name in jobs}, dict.fromkeys(jobs, 0), {}
    for _ in range(asked.rounds):
        for name, formats in jobs.items():
            wall, peak, told = one(folder, base, loras, formats)
            seconds[name].append(wall)
            peaks[name], errors = max(peaks[name], peak), errors | told
    shutil.rmtree(folder)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    table(["job", "s", "peak MB", "error"], [[name, f"{middle[name]:.1f}", f"{peaks[name] / 1e6:.0f}",
                                              f"{errors[name]:.4f}" if name in errors else ""] for name in jobs])
    alone = [middle[name] for name in asked.formats]
    own = middle[MERGE] + sum(each - middle[MERGE] for each in alone)
    print(f"together / slowest alone {middle['together'] / max(alone):.2f} (goal 1.3); together / (merge + encoders) "
          f"{middle['together'] / own:.2f} (goal 1.1); highest {max(peaks.values()) / 1e6:.0f} MB (goal 1500)")


if __name__ == "__main__":
    main()
