"""What all encoders of GGUF types work on: blocks side by side, and sums of one fixed order.

`lanes` turns rows into (size, blocks): element i of every block lies in row i, so a step of a search is one operation over long
rows, and a reduction over a block runs over dim 0. `tree` adds the rows pairwise, in halves: the compiled path adds in the same
order, so both give the same bits. Scales are stored as float16 (ggml-common.h, `ggml_half`).
"""
import torch

HALF_MAX = 65504.0                                 # IEEE 754 binary16


def lanes(band: torch.Tensor, size: int) -> torch.Tensor:
    """(rows, columns) as (size, rows * columns // size), contiguous: a copy. columns: a multiple of size."""
    return band.reshape(-1, size).t().contiguous()


def tree(terms: torch.Tensor) -> torch.Tensor:
    """Sum over dim 0, whose length is a power of two: the second half is added to the first, until one row is left."""
    while len(terms) > 1:
        half = len(terms) // 2
        terms = terms[:half] + terms[half:]
    return terms[0]


def half(scale: torch.Tensor) -> torch.Tensor:
    """float16, to nearest even. Raises ValueError where a finite float32 has no float16."""
    stored = scale.to(torch.float16)
    if not torch.isfinite(stored).all():
        raise ValueError(f"expected weights whose block scales float16 holds, found a scale of {scale.abs().max().item():.3g}; "
                         "check the LoRA strengths, or choose bf16")
    return stored


def rounded(scale: torch.Tensor) -> torch.Tensor:
    """float32 of what `half` stores."""
    return half(scale).float()


def nearest(values: torch.Tensor) -> torch.Tensor:
    """float32, rounded to whole numbers, ties to even: ggml-quants.c, `nearest_int`. torch.round does the same."""
    return values.round()
