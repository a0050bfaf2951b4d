"""Which module encodes and decodes which GGUF type, and with what.

A family module has ENCODERS and DECODERS, by type:
    ENCODERS[name](band (rows, columns) float32, weight (columns,) float32 or None, setting) -> (rows, bytes of a row) uint8
    DECODERS[name](stored (rows, bytes of a row) uint8) -> (rows, columns) float32
and its compiled twin, which needs numba, ENCODERS alone. Both write the same bytes.
"""
from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType

import torch

FAMILIES = {"plain_blocks": ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"), "k_symmetric": ("Q6_K", "Q3_K"),
            "k_asymmetric": ("Q5_K", "Q4_K", "Q2_K"), "iq4": ("IQ4_NL", "IQ4_XS")}
BACKENDS = ("auto", "torch", "numba")
# Elements and bytes of a block (ggml-common.h).
SIZES = {"Q8_0": (32, 34), "Q6_K": (256, 210), "Q5_K": (256, 176), "Q4_K": (256, 144), "Q3_K": (256, 110), "Q2_K": (256, 84),
         "Q5_1": (32, 24), "Q5_0": (32, 22), "Q4_1": (32, 20), "Q4_0": (32, 18), "IQ4_NL": (32, 18), "IQ4_XS": (256, 136)}
COMPILED = "_compiled"                             # ends the name of a family's twin
Encoder = Callable[[torch.Tensor, torch.Tensor | None, str], torch.Tensor]
Decoder = Callable[[torch.Tensor], torch.Tensor]


def module(name: str, ending: str = "") -> ModuleType:
    """The family module of a type, imported when it is needed."""
    family = next(family for family, names in FAMILIES.items() if name in names)
    return import_module(f".{family}{ending}", __package__)


@cache
def has_numba() -> bool:
    """False where numba is absent, or does not know this Python or numpy."""
    try:
        module("Q8_0", COMPILED)
    except ImportError:
        return False
    return True


def chosen(device: torch.device) -> str:
    """What `auto` means on a device."""
    return "numba" if device.type == "cpu" and has_numba() else "torch"


def encoder(name: str, backend: str, device: torch.device) -> tuple[Encoder, bool]:
    """The encoder of a type, and whether it takes a band whole: the torch path of a CPU works on tiles that stay in its cache.

    Raises ValueError where the backend is numba, and it cannot be used here.
    """
    used = chosen(device) if backend == "auto" else backend
    if used == "numba" and chosen(device) != "numba":
        raise ValueError(f"{name}: begun with numba, which cannot be used here; install numba, or delete the unfinished file")
    if used == "numba":
        return module(name, COMPILED).ENCODERS[name], True
    return module(name).ENCODERS[name], device.type != "cpu"


def decoder(name: str) -> Decoder:
    """The decoder of a type."""
    return module(name).DECODERS[name]
