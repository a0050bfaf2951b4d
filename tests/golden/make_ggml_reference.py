"""Makes ggml_reference.safetensors: small weights, and what ggml's C encoders make of them. Run it when ggml's searches change.

    python tests/golden/make_ggml_reference.py PATH-TO-libggml-base     (or GGML_LIBRARY=PATH)

The golden is of ggml commit d99724f2 (August 2026), compiled by gcc 12.2 with its stock Release flags (-O3, SSE2, no FMA). In it:
    weights            (32, 512) float32: eight rows each of Gaussian, Student-t(5), Laplace and column-scaled weights
    extremes           (12, 256) float32: see `extremes`
    outliers           (64, 256) float32: Gaussian with one weight of twenty standard deviations in each row
    importance         (512,) float32, lognormal
    weights.TYPE       uint8: bytes of the reference search; extremes.TYPE: of the extremes
    outliers.TYPE      (64,) float64: squared error of each row by the reference search
    even.TYPE          (32,) float64: squared error of each row, with an imatrix of ones
    weighted.TYPE      (32,) float64: the same with `importance` as the imatrix, each column's error times its importance
Errors are of the bytes as gguf-py decodes them: bytes of three searches would be three times as large.
"""
import argparse
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from error import KINDS
from ggml_library import TYPES, VARIABLE, Ggml, decode, named

ROWS, COLUMNS, SUPER = 8, 512, 256
SIZE = 0.03                                        # about that of Wan's weights
SPREAD = 1.0                                       # of the importances' logarithms: the largest of 512 is 540 times the smallest


def extremes(generator: torch.Generator) -> torch.Tensor:
    """Rows of one super-block each, whose scales, signs or ties are unusual."""
    usual = torch.randn(SUPER, generator=generator) * SIZE
    step = torch.arange(SUPER, dtype=torch.float32)
    alone = torch.zeros(SUPER)
    alone[77] = -1.75
    return torch.stack([
        torch.zeros(SUPER), torch.full((SUPER,), 0.02), torch.full((SUPER,), -0.02),
        alone,
        usual * 1e-38,                             # float32's denormals: the scales become zero, and whole numbers of inf undefined
        usual * 1e-4,                              # scales among float16's denormals
        usual.abs(), -usual.abs(),
        usual * 1e5,                               # scales near the upper end of float16
        torch.where(step % 2 == 0, 0.5, -0.5),     # the largest magnitude has both signs
        (step % 32 - 16) / 2,                      # many codes that are exact, or exactly between two
        torch.where(step % 64 < 32, torch.tensor(-0.0), usual),      # every other block is zero, and negatively
    ]).contiguous()


def outliers(generator: torch.Generator) -> torch.Tensor:
    """Rows of one super-block each, in which one weight sets the scale of the rest."""
    rows = torch.randn(8 * ROWS, SUPER, generator=generator) * SIZE
    places = torch.randint(SUPER, (len(rows),), generator=generator)
    rows[torch.arange(len(rows)), places] = torch.tensor([20.0, -20.0]).repeat(len(rows) // 2) * SIZE
    return rows


def row_errors(name: str, stored: torch.Tensor, weight: torch.Tensor, columns: torch.Tensor | float = 1.0) -> torch.Tensor:
    """(rows,) float64: squared error, each column's times `columns`."""
    return ((decode(name, stored).double() - weight.double()).square() * columns).sum(1)


def golden(ggml: Ggml) -> dict[str, torch.Tensor]:
    """What the file holds, by name."""
    draws = [draw(COLUMNS, torch.Generator().manual_seed(seed))[:ROWS] for seed, draw in enumerate(KINDS.values())]
    generator = torch.Generator().manual_seed(len(draws))
    importance = torch.randn(COLUMNS, generator=generator).mul_(SPREAD).exp_()
    found = {"weights": torch.cat(draws), "extremes": extremes(generator), "outliers": outliers(generator),
             "importance": importance}
    even = torch.ones(COLUMNS)
    for name in TYPES:
        for part in ("weights", "extremes"):
            found[f"{part}.{name}"] = ggml.quantize(name, found[part])
        found[f"outliers.{name}"] = row_errors(name, ggml.quantize(name, found["outliers"]), found["outliers"])
        for label, columns in {"even": even, "weighted": importance}.items():
            stored = ggml.quantize(name, found["weights"], columns)
            found[f"{label}.{name}"] = row_errors(name, stored, found["weights"], columns.double())
    return found


def main() -> None:
    """Write ggml_reference.safetensors beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", nargs="?", help=f"libggml-base; default: what {VARIABLE} names")
    ggml = named(parser.parse_args().library)
    if ggml is None:
        raise SystemExit(f"name the library of ggml, as an argument or in {VARIABLE}")
    save_file(golden(ggml), Path(__file__).with_name("ggml_reference.safetensors"))


if __name__ == "__main__":
    main()
