"""PEFT's OFT (from 0.16 on, and OneTrainer's): blocks of inputs are rotated; a block is stored as its upper triangle.

    W' = W (I + s (R - I))^T,  R over blocks of b columns, every axis but the first being columns
    R = I + 2Q + 2Q^2 + ... + Q^(terms - 1)      use_cayley_neumann, PEFT's default with 5 terms: the last power counts once
    R = (I - Q)(I + Q)^-1                        otherwise; PEFT's two branches turn in opposite directions, and so does this
Source: PEFT 5d602fd, tuners/oft/layer.py (`_cayley_batch`, `merge`) and config.py. Which branch holds stands only in
`adapter_config.json`; without one the default is taken. One block in the file is shared by all (`block_share`).
"""
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from ... import strict_json
from ...bands import Rows
from ...errors import LoraError
from ..alpha import LARGEST, SIBLING
from ..delta import Transform
from ..factors import read_tensor
from ..fit import Shape
from ..peft_config import find_beside
from .layer import Layer, Result
from .rotation import cayley_less_one
from .spelling import ROTATIONS

if TYPE_CHECKING:
    from ..lora import LoraFile

TERMS = 5  # PEFT, OFTConfig.num_cayley_neumann_terms


@dataclass(frozen=True)
class PeftOft:
    """blocks: key; size: b; terms: of the series, None for the exact rotation; told: where that is from."""

    form: ClassVar[str] = "transform"
    kind: ClassVar[str] = "oft"
    rank: ClassVar[int] = 0
    factor: ClassVar[float] = 1.0
    blocks: str
    size: int
    terms: int | None
    alpha_from: str

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.blocks,)

    def load(self, lora: "LoraFile", shape: Shape, device: torch.device) -> Transform:
        """See `modules.Module.load`."""
        packed = read_tensor(lora, self.blocks).double()
        skew = torch.zeros(packed.shape[0], self.size, self.size, dtype=torch.float64)
        row, column = torch.triu_indices(self.size, self.size, 1)
        skew[:, row, column], skew[:, column, row] = packed, -packed
        turn = cayley_less_one(-skew) if self.terms is None else _series(skew, self.terms)
        return InputTransform(turn.to(torch.float32).to(device), math.prod(shape[1:]) // self.size)


class InputTransform(Transform):
    """turn: R - I, (blocks or 1, b, b); applied to a row band with all of its columns."""

    def __init__(self, turn: torch.Tensor, blocks: int):
        self.turn = turn.expand(blocks, -1, -1)

    def apply(self, weight: torch.Tensor, rows: Rows, columns: slice, strength: float) -> None:
        """See `Transform.apply`; takes one more band of the weight's size."""
        parts = weight.unflatten(1, self.turn.shape[:2]).transpose(0, 1)
        change = torch.bmm(parts, self.turn.transpose(1, 2)).transpose(0, 1)
        weight.add_(change.reshape(weight.shape), alpha=strength)


def _series(skew: torch.Tensor, terms: int) -> torch.Tensor:
    """R - I by PEFT's series: 2Q with two terms; from three on 2Q + 2Q^2 and more, the last power once; three are as four."""
    last = terms if terms < 3 else max(terms, 4) - 1
    total, power = torch.zeros_like(skew), skew
    for n in range(1, last + 1 if terms > 2 else terms):
        total += power if n == last else 2.0 * power
        power = power @ skew
    return total


def build(layer: Layer) -> list[Result]:
    """The rotations of the module, one for each spelling."""
    results: list[Result] = []
    for part in (part for part in ROTATIONS if part in layer.parts):
        shape = layer.shape(part)
        size = (1 + math.isqrt(1 + 8 * shape[-1])) // 2 if shape else 0
        problem = layer.missing() if layer.weight is None else _problem(shape, size, layer.target(layer.weight))
        if problem:
            results += layer.refuse([part], problem)
        else:
            results.append((layer.weight, PeftOft(layer.parts[part], size, *_terms(layer.lora))))
    return results


def _problem(shape: Shape, size: int, target: Shape) -> str | None:
    columns = math.prod(target[1:])
    is_triangle = len(target) >= 2 and len(shape) == 2 and size * (size - 1) // 2 == shape[1] > 0
    if is_triangle and (shape[0] * size == columns or (shape[0] == 1 and columns % size == 0)):
        return None
    return f"oft_R of shape {shape} does not rotate the {columns} inputs of {target}"


def _terms(lora: "LoraFile") -> tuple[int | None, str]:
    """(terms of the series or None, where that is said). Raises LoraError for a malformed adapter_config.json."""
    try:
        path = find_beside(lora.path)
        if path is None:
            return TERMS, "PEFT's default series"
        with open(path, "rb") as file:
            found = strict_json.parse(file.read(LARGEST))
        series, terms = found.get("use_cayley_neumann", True), found.get("num_cayley_neumann_terms", TERMS)
        if not isinstance(series, bool) or isinstance(terms, bool) or not isinstance(terms, int) or not 1 <= terms <= 99:
            raise ValueError(f"use_cayley_neumann {series}, num_cayley_neumann_terms {terms}")
    except (OSError, ValueError) as cause:
        expected = "expected PEFT's OFT configuration"
        raise LoraError(f"{lora.name}: {SIBLING} beside it: {expected}, found: {str(cause)[:99]}; get the file again") from cause
    return (terms if series else None), SIBLING
