"""Claim: a LoRA comes out of two 14B checkpoints in minutes and within 1.2 GB. Real layer sizes, extrapolated to a whole expert.

    python benchmarks/extract.py FOLDER [--blocks 1] [--rank 64] [--dim 5120] [--ffn 13824]

Both models are in the page cache. Every block costs the same, so seconds per block times 40, and what lies outside the blocks is
measured in the same run. Prints memory beyond the interpreter's (RssAnon + RssShmem), and also the time of merging three LoRAs.
"""
import argparse
import json
import sys
import time
from pathlib import Path

from harness import REAL, table, watch

BLOCKS = 40


def write(folder: Path, asked) -> None:
    """Two models and three LoRAs; what is there already stays."""
    from wan22_master.engine.synthetic import Sizes, write_lora, write_model

    folder.mkdir(parents=True, exist_ok=True)
    sizes = Sizes(**{**REAL, "dim": asked.dim, "ffn": asked.ffn}, blocks=asked.blocks, rank=asked.rank)
    for name in ("base", "tuned"):
        if not (folder / f"{name}.safetensors").exists():
            write_model(folder / f"{name}.safetensors", sizes, name)
    for number in range(3):
        if not (folder / f"lora_{number}.safetensors").exists():
            write_lora(folder / f"lora_{number}.safetensors", sizes, ("native", "kohya")[number % 2], number)


def child(what: str, folder: Path, rank: int) -> None:
    """One timed job in a process of its own; prints its seconds, of the blocks and of the rest."""
    import torch  # noqa: F401 - before the memory is first looked at

    print("ready", flush=True)
    from wan22_master.engine.bases.source import open_source
    from wan22_master.engine.loras.lora import open_lora
    from wan22_master.engine.loratools.extract import Extraction, extract
    from wan22_master.engine.loratools.merge import Merging, Part, merge
    from wan22_master.engine.loratools.wish import Ranks, Save, Watch

    seconds, last = {"blocks": 0.0, "rest": 0.0}, [time.perf_counter()]

    def tell(progress) -> None:
        now = time.perf_counter()
        seconds["blocks" if "blocks." in progress.key else "rest"] += now - last[0]
        last[0] = now

    save, steps = Save(str(folder / f"{what}.out.safetensors"), "bf16", "overwrite"), Watch(on_progress=tell)
    if what.startswith("extract"):
        with open_source(folder / "tuned.safetensors") as one, open_source(folder / "base.safetensors") as other:
            report = extract(one, other, Extraction(Ranks(rank), what.rpartition(" ")[2]), save, steps)
    else:
        loras = [open_lora(folder / f"lora_{number}.safetensors") for number in range(3)]
        report = merge([Part(lora, 1.0) for lora in loras], Merging(what.rpartition(" ")[2], Ranks(rank)), save, steps)
    print(json.dumps({**seconds, "error": report.error, "bytes": Path(report.path).stat().st_size}))
    Path(report.path).unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--dim", type=int, default=REAL["dim"])
    parser.add_argument("--ffn", type=int, default=REAL["ffn"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        return child(asked.child, asked.folder, asked.rank)
    write(asked.folder, asked)
    rows = []
    for what in ("extract blocks", "extract all", "merge exact", "merge svd"):
        command = [sys.executable, __file__, str(asked.folder), "--rank", str(asked.rank), "--child", what]
        told, peak = watch(command)
        whole = told["blocks"] / asked.blocks * BLOCKS + told["rest"]
        rows.append([what, f"{told['blocks'] / asked.blocks:.2f}", f"{told['rest']:.2f}", f"{whole:.0f}", f"{peak / 1e9:.2f}",
                     f"{told['error']:.3g}"])
    print(f"rank {asked.rank}, {asked.blocks} block(s) of {asked.dim} x {asked.ffn}")
    table(["job", "s a block", "s outside", f"s for {BLOCKS} blocks", "GB beyond the start", "error"], rows)


if __name__ == "__main__":
    main()
