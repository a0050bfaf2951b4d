"""A GGUF type as a format: how many bytes a row takes, and the calls that encode and decode rows.

The interface is that of ../formats.py. A type has one stored tensor, no scales beside it: (rows, bytes of a row), uint8, as the
gguf library takes it. The search of an encoder is `setting`:
    reference   llama.cpp's own, without an importance matrix
    best        the least squared error at about the reference's cost
    max         a longer search
Which code runs it is `backend`: numba, where it is installed and the weight lies in the memory of the CPU, or torch.
"""
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import ClassVar

import torch

from ..words import NOT_FINITE
from . import families

SETTINGS = ("best", "max", "reference")            # the first is the default
TILE = 256 * 1024                                  # elements that the torch path works on at once: they stay in the cache


@dataclass(frozen=True)
class BlockType:
    """NAME: as ggml spells it; setting, backend: see above."""

    NAME: str
    setting: str = SETTINGS[0]
    backend: str = "auto"

    STORED: ClassVar[torch.dtype] = torch.uint8
    GROUPS: ClassVar[Mapping[str, int]] = MappingProxyType({})
    CONSTANTS: ClassVar[tuple[str, ...]] = ()
    INPUT_AMAX: ClassVar[None] = None
    STOCHASTIC: ClassVar[bool] = False
    measure: ClassVar[None] = None                 # a block knows all that it needs

    def __post_init__(self):
        if self.setting not in SETTINGS:
            raise ValueError(f"{self.NAME}: the setting is one of {', '.join(SETTINGS)}, got {self.setting!r}")

    @cached_property
    def block(self) -> tuple[int, int]:
        """(elements, bytes) of a block."""
        return families.SIZES[self.NAME]

    def outputs(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Suffix -> (shape, dtype): (rows, bytes of a row). Raises ValueError for what is no matrix of whole blocks."""
        size, nbytes = self.block
        if len(shape) != 2 or 0 in shape or shape[1] % size:
            raise ValueError(f"{self.NAME}: expected a matrix whose columns are a multiple of {size}, got shape {tuple(shape)}; "
                             "choose Q8_0 or F16 for it")
        return {"": ((shape[0], shape[1] // size * nbytes), self.STORED)}

    def constants(self, stats: None) -> dict[str, torch.Tensor]:
        """Nothing lies beside the blocks."""
        return {}

    def quantize(self, band: torch.Tensor, stats: None = None, scratch: torch.Tensor | None = None, *,
                 importance: torch.Tensor | None = None, noise: None = None) -> dict[str, torch.Tensor]:
        """Rows of blocks.

        band: (rows, columns) float32, not modified. importance: (columns,) float32, how much a column's squared error counts,
        finite and not negative; None: all alike. Raises ValueError on NaN and inf, on importances for `reference`, and where
        float16 does not hold a scale.
        """
        flat = band.reshape(-1)
        if not torch.isfinite(torch.dot(flat, flat)) and not torch.isfinite(flat).all():
            raise ValueError(NOT_FINITE)
        weight = None if importance is None else self._weight(importance)
        encode, whole = families.encoder(self.NAME, self.backend, band.device)
        step = len(band) if whole else max(1, TILE // band.shape[1])
        pieces = [encode(band[first:first + step], weight, self.setting) for first in range(0, len(band), step)]
        return {"": pieces[0] if len(pieces) == 1 else torch.cat(pieces)}

    def _weight(self, importance: torch.Tensor) -> torch.Tensor | None:
        """Importances over their largest; None where they are all alike, or all zero."""
        largest = importance.max()
        if not (torch.isfinite(largest) and importance.min() >= 0):
            raise ValueError(f"{self.NAME}: expected finite importances of at least 0; calibrate again")
        if self.setting == "reference":
            raise ValueError(f"{self.NAME}: the reference setting takes no importances; choose best or max")
        return None if largest == importance.min() else importance / largest

    def dequantize(self, parts: dict[str, torch.Tensor], rows: list[int] | None = None) -> torch.Tensor:
        """(rows, columns) float32. parts: the stored rows; rows: those wanted, None: all."""
        stored = parts[""] if rows is None else parts[""][rows]
        return families.decoder(self.NAME)(stored)
