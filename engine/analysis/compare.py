"""One tensor: exact inner products of all its deltas, and their sign conflict on sampled rows."""
import torch

from ..errors import LoraError, at
from ..merging.contribution import Contribution
from ..specs import TensorSpec
from .estimate import Stratum
from .exact import dense, low_rank
from .layer import open_layer, stack
from .sampled import conflicts, has_rows, rows_of, sample
from .scratch import Scratch
from .section import Found


def compare(key: str, spec: TensorSpec, contributions: list[tuple[int, Contribution]], scratch: Scratch) -> Found:
    """contributions: (entry number, what). scratch: reused by the next call of the same thread.

    Raises LoraError, naming the files and the key, when a value is not finite or a delta overflows float32.
    """
    with at(key, "analysis"):
        layer = open_layer(key, spec, contributions)
        stacked = stack(layer, scratch) if layer.is_low_rank else None
        exact = low_rank(stacked, scratch) if stacked else dense(layer)
        _check(key, contributions, layer.who, exact.gram)
        strata = []
        if len(layer.members) > 1 and has_rows(layer.shape):
            rows = rows_of(key, layer.shape[0])
            sums = conflicts(sample(layer, stacked, rows, scratch), exact.gram)
            strata = [Stratum(layer.shape[0] / len(rows), len(rows), each) for each in sums.tolist()]
        return Found(key, layer.who, exact, strata, layer.left_out)


def _check(key: str, contributions: list[tuple[int, Contribution]], who: list[int], gram: torch.Tensor) -> None:
    if torch.isfinite(gram).all():
        return
    huge = {number for number, energy in zip(who, gram.diagonal().tolist(), strict=True) if energy - energy != 0} or set(who)
    names = " and ".join(dict.fromkeys(what.lora.name for number, what in contributions if number in huge))
    raise LoraError(f"{names}: {key}: the delta overflows float32; lower the strength, or replace the LoRA")
