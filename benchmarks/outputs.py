"""Claim: several files of one merge cost little more than the slowest of them alone.

    python benchmarks/outputs.py FOLDER [--blocks 4] [--loras 2] [--rounds 3] [--formats nvfp4 float8_e4m3fn mxfp8]

Each format alone, all together, and the merge alone (nothing encoded, nothing written), every job in a process of its own from a
cold base, rounds alternating, medians of seconds and of the process's CPU seconds, which a busy machine disturbs less. Goals, in
seconds: together <= 1.3 of the slowest alone, and <= 1.1 of (merge + each encoder's own time, which is its job less the merge);
at most 1.5 GB (peak of RssAnon + RssShmem less its value after `import torch`). What is not quantized, 0.47 GB in every file, is a
larger share of few blocks than of the forty that a model has. Linux only.
"""
import argparse
import json
import os
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
    spent = time.process_time()
    told = {"wall": merge_alone(folder), "outputs": []} if formats == [MERGE] else run_job(folder)
    print(json.dumps({"wall": told["wall"], "cpu": time.process_time() - spent,
                      "errors": {out["label"]: out["error"] for out in told["outputs"]}}))


def merge_alone(folder: Path) -> float:
    """Seconds of the line without outputs, over every tensor that a job carries."""
    from wan22_master.engine.bands import Workers
    from wan22_master.engine.device import full_float32
    from wan22_master.engine.jobs.carry import Ride, carry_all, stored_bytes
    from wan22_master.engine.jobs.line import Line
    from wan22_master.engine.jobs.plan import plan_recipe
    from wan22_master.engine.memory import Peak
    from wan22_master.engine.progress import Clock, silent
    from wan22_master.engine.recipes.recipe import load

    start = time.perf_counter()
    with plan_recipe(load(folder / "recipe.json"), folder / "reports") as plan, Workers() as workers, full_float32():
        [expert] = plan.experts
        ride = Ride(plan.device, Clock(stored_bytes(expert, expert.order), silent), bool, folder / "reports")
        carry_all(Line(expert.source, workers, plan.device.torch_device), expert, expert.order, [], ride, Peak())
    return time.perf_counter() - start


def one(folder: Path, base: Path, loras: list[Path], formats: list[str]) -> tuple[dict, int]:
    """What the child of one job said, and its peak bytes."""
    recipe = write_recipe(folder, base, loras)
    wish = json.loads(recipe.read_text())
    recipe.write_text(json.dumps({**wish, "outputs": [{"format": name} for name in formats if name != MERGE]}))
    clear(folder)
    chill(base)
    said = watch([sys.executable, __file__, str(folder), "--child", *formats])
    clear(folder)
    return said


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
    told, peaks, errors = {name: [] for name in jobs}, dict.fromkeys(jobs, 0), {}
    for _ in range(asked.rounds):
        for name, formats in jobs.items():
            said, peak = one(folder, base, loras, formats)
            told[name].append(said)
            peaks[name], errors = max(peaks[name], peak), errors | said["errors"]
    shutil.rmtree(folder)
    wall, cpu = ({name: statistics.median(each[what] for each in said) for name, said in told.items()} for what in ("wall", "cpu"))
    table(["job", "s", "CPU s", "peak MB", "error"], [
        [name, f"{wall[name]:.1f}", f"{cpu[name]:.1f}", f"{peaks[name] / 1e6:.0f}",
         f"{errors[name]:.4f}" if name in errors else ""] for name in jobs])
    for what, spent in (("seconds", wall), ("CPU seconds", cpu)):
        alone = [spent[name] for name in asked.formats]
        own = spent[MERGE] + sum(each - spent[MERGE] for each in alone)
        print(f"{what}: together / slowest alone {spent['together'] / max(alone):.2f} (goal 1.3); together / (merge + encoders) "
              f"{spent['together'] / own:.2f} (goal 1.1)")
    print(f"highest {max(peaks.values()) / 1e6:.0f} MB (goal 1500); load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
