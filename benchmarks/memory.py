"""Claim: memory does not grow with the model. Merge of two rank-64 LoRAs + FP8 on files of 4, 20 and 40 real-size blocks.

    python benchmarks/memory.py FOLDER [--blocks 4 20 40] [--format float8_e4m3fn]

Peak = max of RssAnon + RssShmem during the job minus its value after `import torch`, seen from outside: flat within 10 %, at most
1.2 GB. FOLDER needs 45 GB for 40 blocks; each set is deleted when it is measured. Linux only.
"""
import argparse
import json
import shutil
import sys
from pathlib import Path

from harness import clear, run_job, table, watch, write_files, write_recipe


def child(folder: Path) -> None:
    """One job; torch is imported before `ready`, the engine after it, so that its own objects count."""
    import torch  # noqa: F401 - the yardstick starts after it

    print("ready", flush=True)
    told = run_job(folder)
    out = told["outputs"][0]
    print(json.dumps({"wall": told["wall"], "bytes": out["bytes"], "error": out["error"], "own_peak": told["peak_bytes"]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 20, 40])
    parser.add_argument("--format", default="float8_e4m3fn", help="a format of a recipe, as Q4_K_M")
    parser.add_argument("--method", choices=["addition", "classic"], default="addition")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return child(asked.folder)
    rows, peaks = [], []
    for blocks in asked.blocks:
        folder = asked.folder / f"memory_{blocks}"
        base, loras = write_files(folder, blocks, 2)
        write_recipe(folder, base, loras, asked.format, asked.method)
        clear(folder)
        said, peak = watch([sys.executable, __file__, str(folder), "--child"])
        peaks.append(peak)
        rows.append([str(blocks), f"{base.stat().st_size / 1e9:.1f}", f"{said['bytes'] / 1e9:.1f}", f"{peak / 1e6:.0f}",
                     f"{said['own_peak'] / 1e6:.0f}", f"{said['wall']:.1f}", f"{base.stat().st_size / said['wall'] / 1e9:.2f}"])
        shutil.rmtree(folder)
    table(["blocks", "GB in", "GB out", "peak MB", "peak MB as reported", "s", "GB/s in"], rows)
    print(f"spread {max(peaks) / min(peaks) - 1:.1%}, highest {max(peaks) / 1e6:.0f} MB (goal: 10 %, 1200 MB)")


if __name__ == "__main__":
    main()
