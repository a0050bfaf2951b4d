"""Claim: a conversion costs little more than reading the file. Against reading, copying, the naive way, and convert_to_quant.

    python benchmarks/speed.py FOLDER [--blocks 5] [--rounds 3] [--ctq PATH-TO-convert_to_quant]

All in one run, the base dropped from the page cache before each timing, medians over the rounds, ratios within each round. Ours
and the naive way are timed in processes of their own from the first file access to synced files, imports left out; the other
tools as whole processes. Needs about four times the base's size free in FOLDER (5 blocks: 4.0 GB). Linux only.
"""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from harness import chill, clear, run_job, table, write_files, write_recipe


def naive(base: Path, loras: list[Path], out: Path, name: str) -> None:
    """What a script does: load everything, merge in float32, cast, save."""
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(base)
    factors = [load_file(path) for path in loras]
    for key, weight in weights.items():
        layer = key.removesuffix(".weight")
        merged = weight.float()
        for lora in factors:
            for stem, (up, down) in {f"diffusion_model.{layer}": ("lora_B", "lora_A"),
                                     f"lora_unet_{layer.replace('.', '_')}": ("lora_up", "lora_down")}.items():
                if f"{stem}.{up}.weight" in lora:
                    rank = lora[f"{stem}.{down}.weight"].shape[0]
                    strength = lora[f"{stem}.alpha"].item() / rank if f"{stem}.alpha" in lora else 1.0
                    merged += strength * (lora[f"{stem}.{up}.weight"].float() @ lora[f"{stem}.{down}.weight"].float())
        if name == "float8_e4m3fn" and weight.dim() == 2 and ".norm" not in key and key.startswith("blocks."):
            scale = merged.abs().amax() / 448
            weights[key] = (merged / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        else:
            weights[key] = merged.to(torch.bfloat16)
    save_file(weights, out)
    with open(out, "rb") as file:
        os.fsync(file.fileno())


def child(what: str, folder: Path, base: Path, loras: list[Path], name: str) -> None:
    """One timed job in a process of its own; prints seconds."""
    import safetensors.torch  # noqa: F401 - imported before the clock starts, and torch with it
    if what == "ours":
        from wan22_master.engine.jobs import run  # noqa: F401
        seconds = run_job(folder)["wall"]
    else:
        start = time.perf_counter()
        naive(base, loras, folder / "naive.safetensors", name)
        seconds = time.perf_counter() - start
    print(json.dumps(seconds))


def read(base: Path) -> float:
    piece, start = bytearray(1 << 20), time.perf_counter()
    with open(base, "rb", buffering=0) as file:
        while file.readinto(piece):
            pass
    return time.perf_counter() - start


def timed(command: list[str], **kwargs) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **kwargs)
    return time.perf_counter() - start


def one_round(folder: Path, base: Path, loras: list[Path], ctq: str | None, jobs: dict[str, tuple[int, str]]) -> dict[str, float]:
    """Seconds of every row, each from a cold base."""
    def cold() -> None:
        os.sync()
        chill(base)

    cold()
    seconds = {"read": read(base)}
    cold()
    seconds["cp + sync"] = timed(["sh", "-c", f"cp {base} {folder}/copy && sync {folder}/copy"])
    (folder / "copy").unlink()
    for row, (count, name) in jobs.items():
        write_recipe(folder, base, loras[:count], name)
        for what in ("ours", "naive"):
            clear(folder)
            cold()
            command = [sys.executable, __file__, str(folder), "--child", what, str(base), str(count), name]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seconds[f"{row}, {what}"] = float(said.splitlines()[-1])
            (folder / "naive.safetensors").unlink(missing_ok=True)
    clear(folder)
    if ctq:
        cold()
        asked = ["-i", str(base), "-o", str(folder / "ctq.safetensors"), "--comfy_quant", "--wan", "--simple"]
        seconds["convert_to_quant --simple"] = timed([ctq, *asked, "--device", "cpu", "--verbose", "MINIMAL"],
                                                     env={**os.environ, "OMP_NUM_THREADS": "2"})
        (folder / "ctq.safetensors").unlink()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ctq", default=shutil.which("convert_to_quant"))
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    folder = asked.folder
    if asked.child:
        what, base, count, name = asked.child
        blocks = base.rpartition("_")[2].removesuffix(".safetensors")
        return child(what, folder, Path(base), [folder / f"lora_{blocks}_{n}.safetensors" for n in range(int(count))], name)
    base, loras = write_files(folder, asked.blocks, 3)
    jobs = {"FP8": (0, "float8_e4m3fn"), "1 LoRA, FP8": (1, "float8_e4m3fn"), "3 LoRAs, FP8": (3, "float8_e4m3fn"),
            "3 LoRAs, BF16": (3, "bf16")}
    rounds = [one_round(folder, base, loras, asked.ctq, jobs) for _ in range(asked.rounds)]
    median = {row: statistics.median(each[row] for each in rounds) for row in rounds[0]}
    size = base.stat().st_size

    def ratio(row: str, other: str) -> str:
        return f"{statistics.median(each[row] / each[other] for each in rounds):.2f}"

    rows = [[row, f"{seconds:.2f}", f"{size / seconds / 1e9:.2f}", ratio(row, "read")] for row, seconds in median.items()]
    print(f"base {size / 1e9:.2f} GB, {asked.rounds} rounds, load {os.getloadavg()[0]:.1f}")
    table(["job", "s (median)", "GB/s in", "x read"], rows)
    for row in jobs:
        print(f"{row}: the naive way takes {ratio(f'{row}, naive', f'{row}, ours')}x as long as ours")
    if asked.ctq:
        print(f"convert_to_quant takes {ratio('convert_to_quant --simple', 'FP8, ours')}x as long as ours")


if __name__ == "__main__":
    main()
