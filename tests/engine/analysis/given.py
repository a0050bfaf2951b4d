"""LoRAs for one tensor, as the analysis gets them, and their deltas in plain float64."""
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from wan22_master.engine.loras.delta import FactorDelta, StoredDelta
from wan22_master.engine.loras.factors import Factors
from wan22_master.engine.merging.contribution import Contribution


@dataclass(frozen=True)
class Given:
    """A module of this form whose tensors lie in memory."""

    kind: str
    form: str
    tensors: tuple
    factor: float = 1.0
    keys: tuple = ()

    def load(self, lora, shape, device):
        if self.form == "factors":
            up, down = self.tensors
            return FactorDelta(Factors(self.factor * up, down))
        return Held(self.tensors[0] * self.factor)


class Held(StoredDelta):
    """A full difference in memory."""

    def __init__(self, tensor):
        self.tensor = tensor.reshape(tensor.shape[0], -1)
        self.factors = None

    def write(self, rows, columns, base, out):
        assert base is None
        out.copy_(self.tensor[slice(*rows), columns])


def pair(draw, shape, rank, size=1.0) -> Given:
    """A product of random factors."""
    up, down = torch.randn(shape[0], rank, generator=draw), torch.randn(rank, shape[1], generator=draw)
    return Given("lora", "factors", (size * up / rank**0.5, down))


def full(tensor) -> Given:
    """A full difference."""
    return Given("diff", "dense", (tensor.float(),))


def contributions(*members: tuple[float, list[Given]]) -> list[tuple[int, Contribution]]:
    """(entry number, what) for each (strength, modules)."""
    return [(who, Contribution(SimpleNamespace(name=f"{who}.safetensors"), modules, strength))
            for who, (strength, modules) in enumerate(members)]


def dense64(strength: float, modules: list[Given]) -> torch.Tensor:
    """strength * the sum of the modules, float64."""
    parts = [m.tensors[0].double() @ m.tensors[1].double() if m.form == "factors" else m.tensors[0].double() for m in modules]
    return strength * sum(module.factor * part for module, part in zip(modules, parts, strict=True))
