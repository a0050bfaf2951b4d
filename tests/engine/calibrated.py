"""Inputs of tiny models as a session would give them, built in memory: what the measuring steps ask of `gather`, and no more."""
import hashlib

import torch

from . import tiny


def skewed(layer: str, tokens: int, columns: int, spread: float = 1.0) -> torch.Tensor:
    """(tokens, columns) float32: channels of lognormal size, another draw for each layer."""
    draw = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(layer.encode()).digest()[:4], "little"))
    sizes = (torch.randn(columns, generator=draw) * spread).exp()
    return torch.randn(tokens, columns, generator=draw) * sizes


class Memory:
    """Stands for gather.Gathered: the first half of each layer's rows is half 0, the second half 1."""

    def __init__(self, inputs: dict[str, torch.Tensor], state: str = "state"):
        self.inputs, self.state = inputs, state

    @classmethod
    def of_model(cls, weights: dict[str, torch.Tensor], tokens: int = 256, spread: float = 1.0, state: str = "state") -> "Memory":
        """Every block linear of a tiny model sees skewed inputs."""
        layers = {key.removesuffix(".weight"): tensor for key, tensor in weights.items() if key.startswith("blocks.")}
        return cls({layer: skewed(layer, tokens, tensor.shape[1], spread) for layer, tensor in layers.items()
                    if tensor.ndim == 2 and layer in tiny.linears(9)}, state)

    def layers(self) -> list[str]:
        return list(self.inputs)

    def amax(self, layer: str) -> torch.Tensor:
        return torch.tensor([float("nan"), self.inputs[layer].abs().max().item(), 1e-3])

    def tokens(self, layer: str, half: int | None = None) -> torch.Tensor:
        middle = (len(self.inputs[layer]) + 1) // 2
        return self.inputs[layer] if half is None else (self.inputs[layer][:middle], self.inputs[layer][middle:])[half]

    def columns(self, layer: str, half: int | None = None) -> tuple[torch.Tensor, int]:
        found = self.tokens(layer, half).double()
        return found.square().sum(0) / max(len(found), 1), len(found)
