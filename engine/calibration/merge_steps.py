"""The steps of a run in one file: calls one after the other, sums added, largest values taken, tokens side by side."""
import os
from collections.abc import Callable
from functools import partial, reduce

import torch

from ..specs import TensorSpec
from .records import ENTRY, RecordFile, describe
from .tensors import write

KINDS = (("squares", 0), ("squares", 1), ("peaks", None), ("tokens", 0), ("tokens", 1))


def merge_steps(files: tuple[RecordFile, ...], path: str | os.PathLike) -> None:
    """Write the records in `files`, of the same points in the same order, as one to `path`. One point is held at a time."""
    points, calls = files[0].points, [call for file in files for call in file.calls]
    fixed = {name: torch.cat([file.table(name) for file in files]) for name in ("amax", "rows")}
    fixed |= {name: torch.stack([file.table(name) for file in files]).sum(0) for name in ("histogram", "counts", "left_out")}
    specs = {name: TensorSpec(tuple(tensor.shape), tensor.dtype) for name, tensor in fixed.items()}
    made: dict[str, Callable[[], torch.Tensor]] = {name: partial(fixed.get, name) for name in fixed}
    for where in ((kind, point, half) for point in points for kind, half in KINDS):
        having = [file for file in files if file.spec(*where)]
        if having:
            name = RecordFile.name_of(*where)
            specs[name] = _spec([file.spec(*where) for file in having], are_rows=where[0] == "tokens")
            made[name] = partial(_joined, having, where, specs[name].dtype)
    said = describe([step for step, _ in calls], tuple(call for _, call in calls), points)
    write(path, specs, lambda name: made[name](), {ENTRY: said})


def _spec(found: list[TensorSpec], *, are_rows: bool) -> TensorSpec:
    """Of several joined: of the widest dtype, and for tokens as many rows as all have."""
    shape = (sum(spec.shape[0] for spec in found), *found[0].shape[1:]) if are_rows else found[0].shape
    return TensorSpec(shape, reduce(torch.promote_types, (spec.dtype for spec in found)))


def _joined(files: list[RecordFile], where: tuple[str, str, int | None], dtype: torch.dtype) -> torch.Tensor:
    found = [file.of(*where).to(dtype) for file in files]
    if where[0] == "tokens":
        return torch.cat(found)
    return torch.stack(found).amax(0) if where[0] == "peaks" else torch.stack(found).sum(0)
