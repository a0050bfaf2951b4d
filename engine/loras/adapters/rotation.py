"""Rotations from skew-symmetric matrices, as OFT and BOFT store them.

    R = (I + Q)(I - Q)^-1, so R - I = 2 Q (I - Q)^-1        Cayley; Q = B - B^T for stored blocks B
    |Q| (Frobenius norm over all blocks) is kept under alpha * outputs where alpha > 0
Sources: OFT arXiv 2306.07280; LyCORIS f49d30d, lycoris/modules/diag_oft.py and boft.py, where the stored alpha is the constraint
and the limit is constraint * out_dim. (ComfyUI takes alpha itself for the limit.) R - I is what is kept, in float64 until it
is rounded once: a small rotation is then not the difference of two large numbers.
"""
import torch

from .layer import Layer, Result

EPSILON = 1e-8  # added to the norm by the trainers


def turn_less_one(blocks: torch.Tensor, limit: float) -> torch.Tensor:
    """R - I of (..., b, b) stored blocks, float32. limit: 0 for none."""
    wide = blocks.double()
    skew = wide - wide.transpose(-1, -2)
    norm = torch.linalg.vector_norm(skew).item() + EPSILON
    if 0 < limit < norm:
        skew *= limit / norm
    return cayley_less_one(skew).to(torch.float32)


def cayley_less_one(skew: torch.Tensor) -> torch.Tensor:
    """2 Q (I - Q)^-1 in the dtype of Q, (..., b, b); I - Q always has an inverse, its eigenvalues being 1 - i t."""
    eye = torch.eye(skew.shape[-1], dtype=skew.dtype)
    return torch.linalg.solve(eye - skew, 2.0 * skew)  # Q and the inverse commute


def rescale_problem(layer: Layer) -> str | None:
    """Why the file's `rescale` is no number per output."""
    if "rescale" not in layer.parts:
        return None
    shape, rows = layer.shape("rescale"), layer.target(layer.weight)[0]
    fits = bool(shape) and shape[0] == rows and set(shape[1:]) <= {1}
    return None if fits else f"rescale has shape {shape}, expected one number for each of {rows} outputs"


def refuse(layer: Layer, reason: str) -> list[Result]:
    """Blocks and rescale together."""
    return layer.refuse(("oft_blocks", "rescale"), reason)
