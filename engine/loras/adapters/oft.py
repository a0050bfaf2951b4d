"""OFT: blocks of outputs are rotated, then each output rescaled.

    W'_k = (1 + s (rescale - 1)) * (I + s (R_k - I))^T W_k        k: blocks of b rows
Source: Qiu et al. 2023, arXiv 2306.07280; LyCORIS f49d30d, lycoris/modules/diag_oft.py, which puts its multiplier s between I and R
as here; rescale it applies whole, so that strength 0 would still change the weight: here s stands between 1 and rescale too.
"""
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from ...bands import Rows
from ...errors import LoraError
from ..delta import Transform
from ..factors import read_tensor
from ..fit import Shape
from ..modules import UNSCALED
from .layer import Layer, Result
from .rotation import refuse, rescale_problem, turn_less_one

if TYPE_CHECKING:
    from ..lora import LoraFile


@dataclass(frozen=True)
class Oft:
    """blocks (n, b, b), for BOFT (stages, n, b, b), and rescale or None: keys. limit: of |Q|, 0 for none."""

    form: ClassVar[str] = "transform"
    rank: ClassVar[int] = 0
    factor: ClassVar[float] = 1.0
    alpha_from: ClassVar[str] = UNSCALED
    kind: str
    blocks: str
    rescale: str | None
    alpha: str | None
    limit: float

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(key for key in (self.blocks, self.rescale, self.alpha) if key)

    def load(self, lora: "LoraFile", shape: Shape, device: torch.device) -> Transform:
        """See `modules.Module.load`."""
        turn = turn_less_one(read_tensor(lora, self.blocks), self.limit).to(device)
        rescale = None if self.rescale is None else (read_tensor(lora, self.rescale).reshape(-1, 1) - 1.0).to(device)
        return (OftTransform if self.kind == "oft" else BoftTransform)(turn, rescale)


class OftTransform(Transform):
    """turn: R - I, (n, b, b); rescale: less one, (out, 1) or None."""

    whole = True

    def __init__(self, turn: torch.Tensor, rescale: torch.Tensor | None):
        self.turn, self.rescale = turn, rescale

    def apply(self, weight: torch.Tensor, rows: Rows, columns: slice, strength: float) -> None:
        """See `Transform.apply`; takes one more tile of the weight's size."""
        self.rotate(weight, strength)
        if self.rescale is not None:
            weight.mul_(self.rescale * strength + 1.0)

    def rotate(self, weight: torch.Tensor, strength: float) -> None:
        """The rotation alone, IN PLACE."""
        change = torch.bmm(self.turn.transpose(1, 2), weight.unflatten(0, self.turn.shape[:2]))
        weight.add_(change.flatten(0, 1), alpha=strength)


class BoftTransform(OftTransform):
    """turn: R - I of every stage, (stages, n, b, b).

    Stage i brings together runs of 2^i b/2 outputs two by two, interleaved, rotates blocks of b and puts them back:
    W <- P^T (I + s (R_i - I)) P W. Source: Liu et al. 2023, arXiv 2311.06243; LyCORIS f49d30d, lycoris/modules/boft.py, s as there.
    """

    def rotate(self, weight: torch.Tensor, strength: float) -> None:
        """The rotation alone, IN PLACE."""
        half = self.turn.shape[-1] // 2
        for stage, turn in enumerate(self.turn):
            runs = weight.unflatten(0, (-1, 2, 2**stage, half)).permute(0, 2, 3, 1, 4)     # (pairs, 2^stage, half, 2, columns)
            change = torch.bmm(turn, runs.reshape(*turn.shape[:2], -1))
            runs.add_(change.view(runs.shape), alpha=strength)


def build(layer: Layer) -> list[Result]:
    """The OFT or BOFT of the module, or nothing."""
    if "oft_blocks" not in layer.parts:
        return refuse(layer, "rescale without oft_blocks")
    problem = layer.missing() if layer.weight is None else _problem(layer) or rescale_problem(layer)
    if problem:
        return refuse(layer, problem)
    limit = 0.0
    if "alpha" in layer.parts:
        alpha = layer.scalar("alpha")
        if math.isnan(alpha):
            raise LoraError(f"{layer.lora.name}: {layer.parts['alpha']}: expected a number, found nan; get the file again")
        limit = max(alpha, 0.0) * layer.target(layer.weight)[0]
    kind = "oft" if len(layer.shape("oft_blocks")) == 3 else "boft"
    return [(layer.weight, Oft(kind, layer.parts["oft_blocks"], layer.parts.get("rescale"), layer.parts.get("alpha"), limit))]


def _problem(layer: Layer) -> str | None:
    shape, target = layer.shape("oft_blocks"), layer.target(layer.weight)
    if len(target) < 2 or len(shape) not in (3, 4) or shape[-1] != shape[-2] or shape[-1] < 2 or shape[-3] * shape[-1] != target[0]:
        return f"oft_blocks of shape {shape} do not rotate the outputs of {target}"
    runs = 2 ** (shape[0] - 1) * shape[-1] if len(shape) == 4 else 1
    if len(shape) == 4 and (not shape[0] or shape[-1] % 2 or target[0] % runs):
        return f"butterfly of {shape[0]} stages and blocks of {shape[-1]} does not divide {target[0]} outputs"
    return None
