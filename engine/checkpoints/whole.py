"""What has to be seen of whole tensors before the first band of a mix can be computed: the cut of ties, the angle of slerp."""
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ..bands import Rows, split
from ..merging.combine.linear import slerp_coefficients
from ..merging.combine.select import Cut, Search, as_matrix
from ..specs import TensorSpec


@dataclass(frozen=True)
class Whole:
    """cut: of the largest elements of b - c; weights: of a and b. None where the method has no need of it."""

    cut: Cut | None = None
    weights: tuple[float, float] | None = None


def search(spec: TensorSpec, density: float, read: Callable[[Rows, torch.Size], torch.Tensor]) -> Whole:
    """The cut of the int(density n) largest elements of b - c; every band of it is read at most four times.

    read: (rows, shape) -> b - c there, (rows, columns) float32.
    """
    shape = tuple(as_matrix(torch.empty(spec.shape, device="meta")).shape)
    found = Search(int(density * spec.numel), shape)
    while found.cut is None:
        for rows, here in _bands(spec):
            found.look(read(rows, here), rows, slice(0, shape[1]))
        found.narrow()
    return Whole(cut=found.cut)


def angle(spec: TensorSpec, t: float, read: Callable[[Rows, torch.Size], tuple[torch.Tensor, torch.Tensor]]) -> Whole:
    """Weights of a and b at t: their Gram matrix in float64, band by band in order.

    read: (rows, shape) -> a and b there, (rows, columns) float32.
    """
    gram = torch.zeros(2, 2, dtype=torch.float64)
    for rows, here in _bands(spec):
        both = torch.stack([each.reshape(-1) for each in read(rows, here)]).double()
        gram += both @ both.t()
    return Whole(weights=tuple(slerp_coefficients(gram, t)))


def _bands(spec: TensorSpec) -> Iterator[tuple[Rows, torch.Size]]:
    """Rows of every band, and the shape of what is read there as a matrix."""
    for rows in split(spec.shape):
        yield rows, torch.Size((rows[1] - rows[0], spec.numel // max(1, spec.shape[0]) if spec.shape else 1))
