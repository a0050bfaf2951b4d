"""Claim: ten rank-64 LoRAs over 400 layers of real size are compared in under 20 s on two cores and under 1 GB beyond the files.

    python benchmarks/analysis.py FOLDER [--loras 10] [--blocks 40] [--rank 64]

The LoRAs (613 MB each at rank 64) are written into FOLDER, as far as they are not there, and read once before the clock starts, so
that they lie in the page cache. The base is a header with a hole behind it: no weight of it is read. Memory is RssAnon + RssShmem
beyond `import torch`, seen from outside (Linux). Hashing the LoRAs belongs to the plan and is timed apart; it is done once a file.
"""
import argparse
import json
import os
import sys
import time
from pathlib import Path

from harness import REAL, table, watch


def write_files(folder: Path, sizes, count: int) -> dict:
    """The recipe's experts and passes; what is there already stays."""
    from wan22_master.engine.specs import NAMES, TensorSpec
    from wan22_master.engine.synthetic import DTYPES, model_shapes, write_lora

    folder.mkdir(parents=True, exist_ok=True)
    base, header, end = folder / f"header_{sizes.blocks}.safetensors", {}, 0
    for key, shape in model_shapes(sizes).items():
        spec = TensorSpec(shape, DTYPES[sizes.dtype])
        header[key] = {"dtype": NAMES[spec.dtype], "shape": shape, "data_offsets": [end, end := end + spec.nbytes]}
    text = json.dumps(header).encode()
    with open(base, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    paths = [folder / f"lora_{sizes.blocks}_{number}.safetensors" for number in range(count)]
    for number, path in enumerate(paths):
        if not path.exists():
            write_lora(path, sizes, ("native", "kohya")[number % 2], seed=number)
        with open(path, "rb") as file:             # into the page cache
            while file.read(1 << 24):
                pass
    loras = [{"files": {"model": str(path)}} for path in paths]
    return {"version": 1, "title": "bench", "experts": {"model": str(base)}, "passes": [{"loras": loras}], "device": "cpu"}


def child(folder: Path) -> None:
    """Plan and analysis; torch is imported before `ready`, the engine after it, so that its own objects count."""
    import torch  # noqa: F401 - the yardstick starts after it

    print("ready", flush=True)
    from wan22_master.engine.analysis.run import analyse
    from wan22_master.engine.jobs.plan import plan_recipe
    from wan22_master.engine.recipes.recipe import load

    reports = folder / "reports"
    for path in reports.glob("conflicts-*.json"):
        path.unlink()
    start = time.perf_counter()
    with plan_recipe(load(folder / "recipe.json"), reports) as plan:
        planned = time.perf_counter()
        report = analyse(plan, reports=reports)
    section = report["experts"][0]["conflicts"]
    layers = json.loads(next(reports.glob("conflicts-*.json")).read_text())["layers"]
    excess = max(section["pairs"], key=lambda pair: pair["excess"] or 0) if section["pairs"] else None
    print(json.dumps({"plan": planned - start, "analysis": time.perf_counter() - planned, "layers": len(layers), "worst": excess}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--loras", type=int, default=10)
    parser.add_argument("--blocks", type=int, default=40)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return child(asked.folder)
    from wan22_master.engine.synthetic import Sizes

    recipe = write_files(asked.folder, Sizes(**REAL, blocks=asked.blocks, rank=asked.rank), asked.loras)
    (asked.folder / "recipe.json").write_text(json.dumps(recipe))
    rows = []
    for _ in range(asked.runs):
        said, peak = watch([sys.executable, __file__, str(asked.folder), "--child"])
        rows.append([str(asked.loras), str(said["layers"]), f"{said['plan']:.1f}", f"{said['analysis']:.1f}", f"{peak / 1e6:.0f}",
                     f"{os.getloadavg()[0]:.1f}"])
        print(f"worst pair {said['worst']}")
    table(["LoRAs", "layers", "plan s", "analysis s", "peak MB", "load"], rows)


if __name__ == "__main__":
    main()
