"""Claim: quantizing on the CPU is several times as fast as comfy-kitchen's eager code at equal bytes, or as fast at less error.

    python benchmarks/quantize_speed.py [--size 5120] [--rounds 3] [--threads 1 2] [--only nvfp4 mxfp8 ...]

Gaussian float32 weights in memory, codes and scales copied out, what a format has to know of the whole tensor counted in. Ours: a
job's bands in threads of its own. comfy-kitchen: the whole tensor with as many torch threads ("eager", which the goals are about),
and the same bands in the same threads ("bands"). All in one run, one after the other in every round, ratios within a round, medians
over the rounds; by wall time, and by processor time, which other programs disturb less. Where numba is installed, NVFP4 has rows of
its own for the compiled passes.
"""
import argparse
import os
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from unittest import mock

import peers
import torch
from harness import table
from wan22_master.engine.bands import Workers
from wan22_master.quant import backend as quant_backend
from wan22_master.quant.formats import Options, form_of

SIGMA = 0.03                                       # of the weights; no figure here depends on it


@dataclass(frozen=True)
class Case:
    """A format of ours beside comfy-kitchen's encoder `peer`. goals: backend -> times eager's speed; equal: the bytes must be."""

    row: str
    peer: str
    options: Options = field(default_factory=Options)
    goals: dict[str, float] = field(default_factory=dict)
    equal: bool = False

    @property
    def form(self):
        return form_of(self.peer.split()[0], self.options)


CASES = (
    Case("nvfp4 fast", "nvfp4", Options(search="fast"), {"torch": 5.0, "numba": 6.0}, equal=True),
    Case("nvfp4 balanced", "nvfp4", Options(search="balanced"), {"torch": 0.8, "numba": 1.5}),
    Case("nvfp4 best", "nvfp4", Options(search="best")),
    Case("mxfp8", "mxfp8", goals={"torch": 4.0}, equal=True),
    Case("float8_e4m3fn", "float8_e4m3fn", goals={"torch": 2.0}, equal=True),
    Case("float8_e5m2", "float8_e5m2", goals={"torch": 2.0}, equal=True),
    Case("int8_tensorwise row", "int8_tensorwise row", Options(int8_scaling="row"), equal=True),
    Case("int8_tensorwise convrot", "int8_tensorwise convrot"),
    Case("convrot_w4a4 fast", "convrot_w4a4", Options(search="fast")),
    Case("convrot_w4a4 balanced", "convrot_w4a4"),
    Case("asym_w4a8_int8 fast", "asym_w4a8_int8", Options(search="fast")),
    Case("asym_w4a8_int8 balanced", "asym_w4a8_int8"),
)


COMPILED = {"nvfp4", "mxfp8", "float8_e4m3fn", "float8_e5m2"}     # formats with passes of numba, too


def cases_of(peer: str) -> list[Case]:
    return [case for case in CASES if case.peer == peer]


def backends(case: Case) -> tuple[str, ...]:
    return ("torch", "numba") if case.form.NAME in COMPILED and quant_backend.compiled() else ("torch",)


def runs_of(peer: str) -> list[tuple[Case, str]]:
    return [(case, backend) for case in cases_of(peer) for backend in backends(case)]


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the wall and of the processor, all threads together."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def eager(peer, weight: torch.Tensor, threads: int) -> peers.Parts:
    torch.set_num_threads(threads)
    with torch.inference_mode():
        return peers.whole(peer, weight)


def banded(form, weight: torch.Tensor, workers: Workers, stored: peers.Parts, backend: str = "torch") -> peers.Parts:
    torch.set_num_threads(1)                       # MKL's count is one for all threads, and `eager` sets it
    with mock.patch.object(quant_backend, "compiled", lambda: None) if backend == "torch" else nullcontext():
        return peers.in_bands(form, weight, workers, stored)


def ways(peer: str, weight: torch.Tensor, workers: Workers) -> dict[str, Callable[[], peers.Parts]]:
    """What is timed for the cases of one peer, by name."""
    theirs, stored = peers.KITCHEN[peer], peers.room_for(cases_of(peer)[0].form, weight.shape)
    return {"eager": partial(eager, theirs, weight, workers.count), "bands": partial(banded, theirs, weight, workers, stored),
            **{f"{case.row}, {backend}": partial(banded, case.form, weight, workers, stored, backend)
               for case, backend in runs_of(peer)}}


def require_equal(peer: str, found: dict[str, Callable[[], peers.Parts]]) -> None:
    """The first run of everything, which warms up and compiles, with bytes compared: rows that promise it with comfy-kitchen's, and
    one backend with the other. Raises SystemExit where they differ."""
    def copy(way: str) -> peers.Parts:
        return {suffix: part.contiguous().view(-1).view(torch.uint8).clone() for suffix, part in found[way]().items()}

    theirs = copy("eager")
    copy("bands")
    for case in cases_of(peer):
        made = [theirs] * case.equal + [copy(f"{case.row}, {backend}") for backend in backends(case)]
        wrong = {suffix for other in made[1:] for suffix, part in made[0].items() if not torch.equal(part, other[suffix])}
        if wrong:
            raise SystemExit(f"{case.row}: the bytes of {', '.join('weight' + suffix for suffix in sorted(wrong))} differ")


def measure(peer: str, weight: torch.Tensor, threads: int, rounds: int) -> list[list[str]]:
    """Rows of the table for the cases of one peer."""
    with Workers(threads) as workers:
        found = ways(peer, weight, workers)
        require_equal(peer, found)
        seconds = [{way: timed(work) for way, work in found.items()} for _ in range(rounds)]
    rows = []
    for case, backend in runs_of(peer):
        way = f"{case.row}, {backend}"
        wall, processor = (statistics.median(each[way][clock] for each in seconds) / weight.numel() for clock in (0, 1))
        ratios = {other: [statistics.median(each[other][clock] / each[way][clock] for each in seconds) for clock in (0, 1)]
                  for other in ("eager", "bands")}
        name = case.row + (" (numba)" if backend == "numba" else "") + (", bytes equal" if case.equal else "")
        rows.append([name, f"{threads}", f"{1e-6 / wall:.0f}", f"{1e9 * processor:.2f}",
                     *(f"{first:.2f} / {second:.2f}" for first, second in ratios.values()),
                     verdict(case.goals.get(backend), ratios["eager"])])
    return rows


def verdict(goal: float | None, ratios: list[float]) -> str:
    """Of the ratios to eager, wall and processor time."""
    if goal is None:
        return ""
    said = ["reached" if ratio >= goal else "MISSED" for ratio in ratios]
    return f"{goal:g} {said[0] if said[0] == said[1] else f'wall {said[0]}, processor {said[1]}'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=5120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", nargs="+", choices=list(peers.KITCHEN), help="comfy-kitchen's encoders to compare with")
    asked = parser.parse_args()
    weight = torch.randn(asked.size, asked.size, generator=torch.Generator().manual_seed(0)).mul_(SIGMA)
    chosen = [peer for peer in dict.fromkeys(case.peer for case in CASES) if not asked.only or peer in asked.only]
    print(f"{asked.size} x {asked.size}, {asked.rounds} rounds, backend {quant_backend.backend()}, load {os.getloadavg()[0]:.1f}; "
          "times faster than comfy-kitchen by wall / processor time", flush=True)
    rows = [row for peer in chosen for threads in asked.threads for row in measure(peer, weight, threads, asked.rounds)]
    table(["format", "threads", "Melem/s", "CPU ns", "x eager", "x bands", "goal, x eager"], rows)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
