"""Many small tensors from their devices to the CPU, with one transfer for each kind: 240 points would else wait 1000 times."""
from collections.abc import Sequence

import torch


def fetch(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The same tensors on the CPU, in order, of their shapes and dtypes. What lies there already is not copied."""
    away = [tensor for tensor in tensors if tensor.device.type != "cpu"]
    brought = iter(together(away))
    return [tensor if tensor.device.type == "cpu" else next(brought) for tensor in tensors]


def together(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The same tensors on the CPU, those of one device and dtype by way of one tensor."""
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    brought = list(tensors)
    for place, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(place)
    for places in groups.values():
        flat = torch.cat([tensors[place].reshape(-1) for place in places]).cpu()
        sizes = [tensors[place].numel() for place in places]
        for place, part in zip(places, flat.split(sizes), strict=True):
            brought[place] = part.reshape(tensors[place].shape)
    return brought
