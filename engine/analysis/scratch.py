"""Memory that one analysis reuses from layer to layer: a fresh page costs the system more time than the number written into it."""
import math
import threading

import torch


class Scratch(threading.local):
    """Each thread has its own; all is let go with the object. What `take` gave under a name is overwritten by its next `take`."""

    def __init__(self):
        self.held: dict[str, torch.Tensor] = {}

    def take(self, name: str, *shape: int) -> torch.Tensor:
        """A float32 tensor of this shape, contiguous, of any content."""
        count = math.prod(shape)
        if name not in self.held or self.held[name].numel() < count:
            self.held[name] = torch.empty(0)       # let go before the larger one is made
            self.held[name] = torch.empty(count)
        return self.held[name][:count].view(shape)
