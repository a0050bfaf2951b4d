"""Claim: GGUF types are written on the CPU as fast as ggml's C code writes them, K-quants up to twice, at no more error.

    python benchmarks/gguf_speed.py --ggml PATH-TO-libggml-base [--rows 1280] [--rounds 3] [--threads 1 2] [--only Q4_K ...]
                                    [--settings reference best max]

Gaussian float32 weights in memory, rows of 5120 in a job's bands of 128. Ours and ggml's encoders, without an imatrix, run in the
same threads, one after the other in every round; ratios within a round, medians over the rounds, by wall time / processor time,
which other programs disturb less. `best` is run compiled (numba, where it is installed) and eager, the rest with what a job takes.
Without ggml's library (or GGML_LIBRARY) the ratios are left out. Below: what an expert of Wan 2.2 A14B as Q4_K_M would take, from
the weights of each type and these speeds; and with a CUDA device, its speed and bytes beside the CPU's.
"""
import argparse
import os
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from math import prod

import ggml_library
import torch
from ggml_library import TYPES
from harness import REAL, table
from wan22_master.engine.bands import Workers, split
from wan22_master.engine.gguf_mix import mix_types
from wan22_master.engine.synthetic import Sizes, model_shapes
from wan22_master.quant.gguf import families
from wan22_master.quant.gguf.block_type import BlockType

CPU = torch.device("cpu")
COLUMNS, SIGMA = REAL["dim"], 0.03                 # no figure here depends on the size of the weights
GGML = "ggml"
# Bytes. glibc maps large blocks anew at every call until one of them was freed, up to 32 MB (mallopt(3), M_MMAP_THRESHOLD); a host
# that has loaded a model has done so long before.
SEEN = 31 * 2 ** 20
# (type, setting, backend, threads) -> times ggml's speed: at least, and what is in reach.
GOALS = {**{(name, "best", "numba", 2): (1.0, 2.0) for name in ("Q2_K", "Q3_K", "Q4_K", "Q5_K")},
         ("Q6_K", "best", "numba", 2): (1.3, 2.0), **{("Q8_0", "best", "numba", threads): (1.0, 1.0) for threads in (1, 2)},
         **{(name, "best", "torch", 1): (0.9, 0.9) for name in ("Q4_K", "Q5_K")}, ("Q4_0", "reference", "numba", 1): (0.6, 0.6)}
EXPERT_MINUTES = 8.0                               # goal for an expert as Q4_K_M, `best`, compiled, two threads
BLOCKS = 40                                        # of Wan 2.2 A14B
BF16_BYTES = 2                                     # of a weight as it comes over the bus
Seconds = dict[str, tuple[float, float]]           # way -> (wall, processor)


def ways(name: str, asked: argparse.Namespace) -> dict[str, Callable[[torch.Tensor], object]]:
    """What is timed, by "setting, backend"."""
    found = {GGML: partial(asked.library.quantize, name)} if asked.library else {}
    for setting in asked.settings:
        for backend in dict.fromkeys((families.chosen(CPU), *["torch"] * (setting == "best"))):
            found[f"{setting}, {backend}"] = BlockType(name, setting, backend).quantize
    return found


def timed(encode: Callable[[torch.Tensor], object], weight: torch.Tensor, workers: Workers) -> tuple[float, float]:
    """Seconds on the wall and of the processor, all threads together."""
    wall, processor = time.perf_counter(), time.process_time()
    deque(workers.each(lambda rows: encode(weight[slice(*rows)]), split(tuple(weight.shape))), maxlen=0)
    return time.perf_counter() - wall, time.process_time() - processor


def measure(name: str, weight: torch.Tensor, threads: int, asked: argparse.Namespace) -> list[Seconds]:
    """Seconds of every way, by round; the first call of each, which compiles, is not counted."""
    found = ways(name, asked)
    with Workers(threads) as workers:
        for encode in found.values():
            timed(encode, weight[:128 * threads], workers)
        return [{way: timed(encode, weight, workers) for way, encode in found.items()} for _ in range(asked.rounds)]


def verdict(name: str, way: str, threads: int, ratios: list[float]) -> str:
    """Of the ratios to ggml, wall and processor time."""
    case = (name, *way.split(", "), threads)
    if case not in GOALS:
        return ""
    least, reach = GOALS[case]
    said = [f"{reach:g} reached" if ratio >= reach else f"{least:g} reached" if ratio >= least else f"{least:g} MISSED"
            for ratio in ratios]
    return said[0] if said[0] == said[1] else f"wall {said[0]}, processor {said[1]}"


def rows_of(name: str, threads: int, rounds: list[Seconds], numel: int) -> list[list[str]]:
    """Rows of the table for one type."""
    rows = []
    for way in rounds[0]:
        wall, processor = (statistics.median(each[way][clock] for each in rounds) / numel for clock in (0, 1))
        row, beside = [f"{name} {way}", f"{threads}", f"{1e-6 / wall:.1f}", f"{1e9 * processor:.2f}"], ["", ""]
        if way != GGML and GGML in rounds[0]:
            ratios = [statistics.median(each[GGML][clock] / each[way][clock] for each in rounds) for clock in (0, 1)]
            beside = [f"{ratios[0]:.2f} / {ratios[1]:.2f}", verdict(name, way, threads, ratios)]
        rows.append(row + beside)
    return rows


def expert_weights(mix: str) -> Counter:
    """Type -> weights of the linears of an expert's blocks, which a mix quantizes."""
    shapes = {key: shape for key, shape in model_shapes(Sizes(**REAL, blocks=BLOCKS)).items()
              if key.startswith("blocks.") and key.endswith(".weight") and len(shape) == 2}
    types = mix_types(mix, shapes)
    return Counter({name: sum(prod(shapes[key]) for key in shapes if types[key] == name) for name in dict.fromkeys(types.values())})


def show_expert(found: dict[tuple[str, int], list[Seconds]], numel: int) -> None:
    """Minutes of an expert as Q4_K_M: encoding alone. found: (type, threads) -> rounds; nothing where a type of it was not run."""
    counts = expert_weights("Q4_K_M")
    if not {name for name, _ in found} >= counts.keys():
        return
    shares, rows = ", ".join(f"{name} {count / 1e9:.2f}" for name, count in counts.items()), []
    print(f"\n## One expert as Q4_K_M, encoding alone ({shares} G weights); goal: best, two threads, {EXPERT_MINUTES:g} minutes\n")
    for threads in sorted({threads for _, threads in found}):
        runs = {name: found[name, threads] for name in counts}
        for way in next(iter(runs.values()))[0]:
            wall, processor = (sum(counts[name] * statistics.median(each[way][clock] for each in rounds) / numel / 60
                                   for name, rounds in runs.items()) for clock in (0, 1))
            rows.append([way, f"{threads}", f"{wall:.1f}", f"{processor:.1f}"])
    table(["setting", "threads", "minutes", "CPU minutes"], rows)


def show_cuda(weight: torch.Tensor, asked: argparse.Namespace) -> None:
    """GB/s of weights that are BF16 before they are bands, and the bytes beside the CPU's."""
    print(f"\n## {torch.cuda.get_device_name()}, bands of 128 rows\n")
    device, rows = weight.cuda(), []
    bands = [device[slice(*each)] for each in split(tuple(weight.shape))]
    for name in asked.only:
        for setting in asked.settings:
            form, seconds = BlockType(name, setting, "torch"), []
            for _ in range(asked.rounds + 1):      # the first one warms up
                torch.cuda.synchronize()
                start = time.perf_counter()
                stored = [form.quantize(band)[""] for band in bands]
                torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
            rate = weight.numel() / statistics.median(seconds[1:])
            equal = (torch.cat(stored).cpu() == BlockType(name, setting).quantize(weight)[""]).double().mean().item()
            rows.append([f"{name} {setting}", f"{rate / 1e6:.0f}", f"{BF16_BYTES * rate / 1e9:.2f}", f"{100 * equal:.4f} %"])
    table(["type", "Melem/s", "GB/s of BF16", "bytes equal to the CPU's"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ggml", help=f"ggml's library; default: what {ggml_library.VARIABLE} names")
    parser.add_argument("--rows", type=int, default=1280)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="+", choices=TYPES, default=list(TYPES))
    parser.add_argument("--settings", nargs="+", choices=("reference", "best", "max"), default=["reference", "best", "max"])
    asked = parser.parse_args()
    asked.library = ggml_library.named(asked.ggml)
    torch.empty(SEEN, dtype=torch.uint8)           # freed at once
    weight = torch.randn(asked.rows, COLUMNS, generator=torch.Generator().manual_seed(0)).mul_(SIGMA)
    print(f"{asked.rows} x {COLUMNS}, {asked.rounds} rounds, {families.chosen(CPU)}, load {os.getloadavg()[0]:.1f}", flush=True)
    found = {(name, threads): measure(name, weight, threads, asked) for name in asked.only for threads in asked.threads}
    rows = [row for (name, threads), rounds in found.items() for row in rows_of(name, threads, rounds, weight.numel())]
    table(["type", "threads", "Melem/s", "CPU ns", "x ggml", "goal, x ggml"], rows)
    show_expert(found, weight.numel())
    if torch.cuda.is_available():
        show_cuda(weight, asked)
    print(f"\nload {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
