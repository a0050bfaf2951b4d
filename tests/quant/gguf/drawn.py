"""Weights for the tests of GGUF's types, and what gguf-py makes of their blocks."""
import gguf
import numpy
import torch


def decoded(name: str, stored: torch.Tensor) -> torch.Tensor:
    """Rows of blocks as gguf-py reads them, float32."""
    return torch.from_numpy(gguf.quants.dequantize(stored.numpy(), gguf.GGMLQuantizationType[name]))


def weights(kind: str, rows: int = 24, columns: int = 512) -> torch.Tensor:
    """Seeded: gauss, laplace, t5 (Student's), columns (Gaussian, each column of a size of its own)."""
    generator = numpy.random.default_rng(7)
    drawn = {"gauss": lambda: generator.standard_normal((rows, columns)),
             "laplace": lambda: generator.laplace(size=(rows, columns)),
             "t5": lambda: generator.standard_t(5, (rows, columns)),
             "columns": lambda: generator.standard_normal((rows, columns)) * generator.lognormal(0, 0.5, columns)}[kind]()
    return torch.from_numpy((drawn * 0.02).astype(numpy.float32))


def error(name: str, stored: torch.Tensor, x: torch.Tensor, columns: torch.Tensor | float = 1.0) -> float:
    """Relative L2 error, each column's squares times `columns`."""
    away = (decoded(name, stored).double() - x).square() * columns
    return (away.sum() / (x.double().square() * columns).sum()).sqrt().item()
