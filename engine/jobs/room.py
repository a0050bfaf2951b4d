"""The line's memory: one buffer for a tensor that has to lie whole, and a band and a scratch for each thread, all reused."""
import math
import threading

import torch

from ..bands import Rows
from ..specs import TensorSpec


class Room:
    """Float32 on one device. `whole` is None while the tensor at hand goes through band by band."""

    def __init__(self, device: torch.device):
        self.device, self.buffer, self.local = device, torch.empty(0), threading.local()
        self.whole: torch.Tensor | None = None

    def take(self, spec: TensorSpec, *, whole: bool) -> None:
        """Make ready for the next tensor; the larger buffer stays for those after it."""
        if whole and self.buffer.numel() < spec.numel:
            self.buffer = torch.empty(0)           # the old one goes before the larger one comes
            self.buffer = torch.empty(spec.numel, dtype=torch.float32, device=self.device)
        self.whole = self.buffer[:spec.numel].view(spec.shape) if whole else None

    def band(self, spec: TensorSpec, rows: Rows) -> torch.Tensor:
        """Where this band lives: in the buffer, or in this thread's own tile."""
        if self.whole is not None:
            return self.whole[rows[0]:rows[1]] if spec.shape else self.whole
        return self._tile("band", spec, rows)

    def scratch(self, spec: TensorSpec, rows: Rows) -> torch.Tensor:
        """As large as a band; whoever asks overwrites it."""
        return self._tile("scratch", spec, rows)

    def _tile(self, name: str, spec: TensorSpec, rows: Rows) -> torch.Tensor:
        shape = (rows[1] - rows[0], *spec.shape[1:]) if spec.shape else ()
        need = math.prod(shape)
        tile = getattr(self.local, name, None)
        if tile is None or tile.numel() < need:
            tile = torch.empty(need, dtype=torch.float32, device=self.device)
            setattr(self.local, name, tile)
        return tile[:need].view(shape)
