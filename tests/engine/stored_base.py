"""A tiny base on disk, for the tests of everything that reads one."""
import threading

import torch
from safetensors.torch import save_file

DIM, FFN = 128, 192


def wan(dtype=torch.float32):
    """A tiny base: real names, one tensor larger than a read piece."""
    random = torch.Generator().manual_seed(7)
    shapes = {"patch_embedding.weight": (DIM, 16, 1, 2, 2), "head.modulation": (1, 2, DIM), "head.head.weight": (64, DIM),
              "time_projection.1.weight": (3001, 6 * DIM), "blocks.0.self_attn.q.weight": (DIM, DIM),
              "blocks.0.ffn.0.weight": (FFN, DIM), "blocks.1.ffn.0.weight": (FFN, DIM), "blocks.1.norm3.weight": (DIM,)}
    return {key: (torch.randn(shape, generator=random) * 3).to(dtype) for key, shape in shapes.items()}


def saved(path, tensors, metadata=None):
    save_file({key: value.contiguous() for key, value in tensors.items()}, path, metadata)
    return path


def read_at_once(source, bands):
    """What `source.read` gives for each (key, rows), four threads reading at once."""
    together = [None] * len(bands)

    def work(first):
        for number in range(first, len(bands), 4):
            together[number] = source.read(*bands[number])

    threads = [threading.Thread(target=work, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return together
