"""What the benchmarks share: the pack by its name, real-shape files, a cold page cache, and the peak of a child process."""
import json
import os
import shutil
import subprocess
import sys
import time
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
package = types.ModuleType("wan22_master")
package.__path__ = [str(ROOT)]
sys.modules.setdefault("wan22_master", package)

REAL = {"dim": 5120, "ffn": 13824, "kind": "i2v", "dtype": "bf16"}     # Wan 2.2 I2V-A14B


def write_files(folder: Path, blocks: int, loras: int, rank: int = 64) -> tuple[Path, list[Path]]:
    """One expert of real shapes with `blocks` blocks, and `loras` LoRAs for it; what is there already stays."""
    from wan22_master.engine.synthetic import Sizes, write_lora, write_model

    folder.mkdir(parents=True, exist_ok=True)
    base, sizes = folder / f"base_{blocks}.safetensors", Sizes(**REAL, blocks=blocks, rank=rank)
    if not base.exists():
        write_model(base, sizes)
    paths = [folder / f"lora_{blocks}_{number}.safetensors" for number in range(loras)]
    for number, path in enumerate(paths):
        if not path.exists():
            write_lora(path, sizes, ("native", "kohya")[number % 2], seed=number)
    return base, paths


def write_recipe(folder: Path, base: Path, loras: list[Path], name: str = "float8_e4m3fn", method: str = "addition") -> Path:
    """A recipe for one file without a pair."""
    passes = [{"method": method, "loras": [{"files": {"model": str(path)}} for path in loras]}] if loras else []
    recipe = {"version": 1, "title": "bench", "experts": {"model": str(base)}, "passes": passes, "outputs": [{"format": name}],
              "save": {"folder": str(folder / "out"), "name": "plain"}, "device": "cpu"}
    path = folder / "recipe.json"
    path.write_text(json.dumps(recipe))
    return path


def clear(folder: Path) -> None:
    """Remove what a job wrote."""
    for name in ("out", "reports"):
        shutil.rmtree(folder / name, ignore_errors=True)


def chill(path: Path) -> None:
    """Drop a file from the page cache (Linux)."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run_job(folder: Path) -> dict:
    """The job of `folder/recipe.json`; returns the expert's report with `wall`, the seconds from the recipe to the sealed file."""
    from wan22_master.engine.jobs.plan import plan_recipe
    from wan22_master.engine.jobs.run import run
    from wan22_master.engine.recipes.recipe import load

    start = time.perf_counter()
    with plan_recipe(load(folder / "recipe.json"), folder / "reports") as plan:
        report = run(plan, reports=folder / "reports")
    return {**report["experts"][0], "wall": time.perf_counter() - start}


def held(pid: int) -> int:
    """RssAnon + RssShmem of a process, bytes (proc(5)); 0 when it is gone."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("Rss"))
    except (OSError, ProcessLookupError):
        return 0
    return sum(int(lines.get(name, "0 kB").split()[0]) * 1024 for name in ("RssAnon", "RssShmem"))


def watch(command: list[str]) -> tuple[dict, int]:
    """Run a child that prints `ready` after `import torch` and a JSON line at its end.

    Returns that line, and the highest held bytes, sampled every 5 ms, less those at `ready`.
    """
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        if child.stdout.readline().strip() != "ready":
            raise SystemExit(f"{command}: the child did not start")
        start = top = held(child.pid)
        while child.poll() is None:
            top = max(top, held(child.pid))
            time.sleep(0.005)
        said = child.stdout.read().strip().splitlines()
    if child.returncode:
        raise SystemExit(f"{command}: exit {child.returncode}")
    return json.loads(said[-1]), top - start


def table(head: list[str], rows: list[list[str]]) -> None:
    """Print a Markdown table."""
    for cells in (head, ["---"] * len(head), *rows):
        print("| " + " | ".join(cells) + " |")
