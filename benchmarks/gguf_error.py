"""Claim: each GGUF type's `best` errs no more than llama.cpp without an imatrix, and `max` no more than with one.

    python benchmarks/gguf_error.py [--rows 5120] [--ggml PATH-TO-libggml-base] [--only Q4_K ...] [--backend auto]

Relative error, ||decoded - W|| / ||W||, of seeded Gaussian, Student-t, Laplace and column-scaled weights, 5120 wide, in a job's
bands; gguf-py decodes every row, whoever wrote it. ggml's C encoders run beside ours where their library is given (or named by
GGML_LIBRARY), without an imatrix and with one of ones; else the figures are those stored below. The second table weights the
columns: importances are lognormal, ggml takes them as its imatrix, and the error is sqrt(sum w (decoded - W)^2 / sum w W^2). A
figure above its goal is marked with `>`. Two minutes at 1024 rows, five at 5120, on two cores with numba.
"""
import argparse
import os
from collections.abc import Callable
from functools import partial

import ggml_library
import torch
from error import KINDS
from ggml_library import TYPES, decode
from harness import table
from wan22_master.engine.bands import Workers, split
from wan22_master.quant.gguf.block_type import BlockType

COLUMNS = 5120                                     # Wan 2.2 A14B's width
IMPORTANCE_SPREAD = 1.0                            # of the importances' logarithms
# ggml d99724f2, 256 x 5120 of such weights: without an imatrix, then with one of ones; in the order of KINDS. gcc -O3, SSE2.
STORED = {
    "Q8_0": ((.00536, .00675, .00674, .00701), (.00536, .00675, .00674, .00701)),
    "Q6_K": ((.01775, .02146, .02166, .02224), (.01733, .02099, .02117, .02175)),
    "Q5_K": ((.03613, .04200, .04280, .04363), (.03538, .04134, .04207, .04295)),
    "Q4_K": ((.07131, .08286, .08453, .08628), (.07072, .08222, .08382, .08559)),
    "Q3_K": ((.15101, .17633, .17613, .18161), (.14467, .16989, .16971, .17517)),
    "Q2_K": ((.29661, .33333, .34421, .34589), (.26802, .29612, .30036, .30396)),
    "Q5_1": ((.03786, .04350, .04441, .04513), (.03379, .03910, .03994, .04067)),
    "Q5_0": ((.04275, .05372, .05343, .05577), (.04047, .05192, .05163, .05406)),
    "Q4_1": ((.07820, .08989, .09170, .09336), (.06986, .08087, .08264, .08423)),
    "Q4_0": ((.08601, .10762, .10675, .11184), (.08167, .10416, .10327, .10856)),
    "IQ4_NL": ((.07612, .08844, .08783, .09087), (.07489, .08688, .08632, .08926)),
    "IQ4_XS": ((.07672, .08926, .08855, .09165), (.07558, .08789, .08718, .09023)),
}
# What a first prototype of `best` reached on 64 rows of those weights.
PROTOTYPE = {
    "Q6_K": (.01722, .02089, .02104, .02171), "Q5_K": (.03556, .04140, .04200, .04321), "Q4_K": (.07106, .08224, .08358, .08594),
    "Q3_K": (.14348, .16767, .16757, .17384), "Q2_K": (.26499, .28947, .29283, .29725), "Q5_1": (.03385, .03903, .03973, .04073),
    "Q5_0": (.04019, .05152, .05106, .05400), "Q4_1": (.07033, .08095, .08246, .08459), "Q4_0": (.08095, .10297, .10177, .10788),
    "IQ4_NL": (.0735, .0850, .0845, .0879), "IQ4_XS": (.0741, .0862, .0852, .0893),
}
REFERENCE, IMATRIX = "ggml", "ggml, imatrix"
PLAIN, WEIGHTED = {"best": REFERENCE, "max": IMATRIX}, {"best": IMATRIX, "max": IMATRIX}     # setting -> row not to err more than
Encode = Callable[[torch.Tensor], torch.Tensor]


def ours(name: str, setting: str, backend: str, importance: torch.Tensor | None = None) -> Encode:
    form = BlockType(name, setting, backend)
    return lambda band: form.quantize(band, importance=importance)[""]


def ways(name: str, asked: argparse.Namespace, importance: torch.Tensor | None) -> dict[str, Encode]:
    """Row -> encoder of a band. importance: None: without, and ggml's imatrix is of ones."""
    settings = ("reference", "best", "max") if importance is None else ("best", "max")
    found = {setting: ours(name, setting, asked.backend, importance) for setting in settings}
    if asked.library:
        if importance is None:
            found[REFERENCE] = partial(asked.library.quantize, name)
        found[IMATRIX] = partial(asked.library.quantize, name, importance=torch.ones(COLUMNS) if importance is None else importance)
    return found


def band_errors(name: str, found: dict[str, Encode], columns: torch.Tensor, band: torch.Tensor) -> torch.Tensor:
    """(ways + 1,) float64: squared error of a band by each way, then the bytes in which reference and ggml agree."""
    stored = {way: encode(band) for way, encode in found.items()}
    wrong = [((decode(name, rows) - band).double().square() @ columns).sum() for rows in stored.values()]
    both = {"reference", REFERENCE} <= stored.keys()
    equal = (stored["reference"] == stored[REFERENCE]).sum() if both else torch.tensor(0)
    return torch.stack([*wrong, equal.double()])


def errors(name: str, weight: torch.Tensor, found: dict[str, Encode], columns: torch.Tensor, workers: Workers) -> dict[str, float]:
    """Way -> relative error, and "equal": the share of ggml's bytes that the reference setting wrote.

    columns: (columns,) float64, how much each one's squared error counts.
    """
    bands = split(tuple(weight.shape))
    sums = torch.stack(workers.map(lambda rows: band_errors(name, found, columns, weight[slice(*rows)]), bands)).sum(0)
    size = sum((weight[slice(*rows)].double().square() @ columns).sum() for rows in bands)
    nbytes = BlockType(name).outputs(tuple(weight.shape))[""][0]
    return {**dict(zip(found, (sums[:-1] / size).sqrt().tolist(), strict=True)), "equal": sums[-1].item() / (nbytes[0] * nbytes[1])}


def stored_errors(name: str, kind: int) -> dict[str, float]:
    """ggml's errors where its library is not here."""
    return {REFERENCE: STORED[name][0][kind], IMATRIX: STORED[name][1][kind]}


def cell(way: str, found: dict[str, float], goals: dict[str, str]) -> str:
    """A figure in five digits, which is also how it is compared with its goal."""
    missed = goals.get(way) in found and round(found[way], 5) > round(found[goals[way]], 5)
    return "> " * missed + f"{found[way]:.5f}"


def show(name: str, found: list[dict[str, float]], goals: dict[str, str]) -> list[list[str]]:
    """Rows of one type. found: by kind of weights."""
    ways_of = [way for way in found[0] if way != "equal"]
    return [[f"{name} {way}", *(cell(way, each, goals) for each in found), goals.get(way, "")] for way in ways_of]


def show_plain(asked: argparse.Namespace, weights: dict[str, torch.Tensor], workers: Workers) -> None:
    rows = []
    for name in asked.only:
        found = [errors(name, weight, ways(name, asked, None), torch.ones(COLUMNS, dtype=torch.float64), workers)
                 for weight in weights.values()]
        if not asked.library:
            found = [each | stored_errors(name, kind) for kind, each in enumerate(found)]
        rows += show(name, found, PLAIN)
        if asked.library:
            rows.append([f"{name} reference, bytes equal to ggml's", *(f"{100 * each['equal']:.4f} %" for each in found), ""])
        if name in PROTOTYPE:
            rows.append([f"{name} best, prototype", *(f"{value:.5f}" for value in PROTOTYPE[name]), ""])
    print(f"\n## Relative error, {asked.rows} x {COLUMNS}; ggml {'beside' if asked.library else 'as stored, of other seeds'}\n")
    table(["type", *weights, "goal: not above"], rows)


def show_weighted(asked: argparse.Namespace, weights: dict[str, torch.Tensor], workers: Workers) -> None:
    importance = torch.randn(COLUMNS, generator=torch.Generator().manual_seed(1)).mul_(IMPORTANCE_SPREAD).exp_()
    rows = []
    for name in asked.only:
        rows += show(name, [errors(name, weight, ways(name, asked, importance), importance.double(), workers)
                            for weight in weights.values()], WEIGHTED)
    print("\n## Weighted error, lognormal importances of the columns; both settings are to reach ggml's imatrix\n")
    table(["type", *weights, "goal: not above"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5120)
    parser.add_argument("--ggml", help=f"ggml's library; default: what {ggml_library.VARIABLE} names")
    parser.add_argument("--only", nargs="+", choices=TYPES, default=list(TYPES))
    parser.add_argument("--backend", choices=("auto", "torch", "numba"), default="auto")
    asked = parser.parse_args()
    asked.library = ggml_library.named(asked.ggml)
    weights = {kind: draw(COLUMNS, torch.Generator().manual_seed(0))[:asked.rows].clone() for kind, draw in KINDS.items()}
    with Workers() as workers, torch.inference_mode():
        show_plain(asked, weights, workers)
        show_weighted(asked, weights, workers)
    print(f"\nload {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
