"""FP8 with one float32 scale per tensor, as ComfyUI's `float8_e4m3fn` and `float8_e5m2` store it.

    weight_scale = amax / max            codes = RNE_fp8(weight * (1 / weight_scale))           read back: codes * weight_scale

max is the largest finite value, 448 for E4M3 and 57344 for E5M2 (OCP OFP8 specification, table 1). 1 / weight_scale is rounded to
float32 before the product: the order of comfy-kitchen's eager `quantize_per_tensor_fp8`, so codes are equal to its codes on float32
input. RNE = round to nearest, ties to even. Relative error on Gaussian weights: E4M3 0.0265 (3 mantissa bits), E5M2 0.053 (2).
No clamp is needed: three roundings keep |weight| / weight_scale under max * (1 + 2**-22), and the formats round everything under
464 to 448, under 61440 to 57344.

Two cases differ from comfy-kitchen, which writes NaN there: an all-zero tensor gets scale 1 and codes 0, and a tensor whose scale
would be subnormal (amax < max * 2**-126) is divided instead of multiplied, because 1 / weight_scale would be infinite.
"""
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch

from .backend import compiled_for
from .grid import round_stochastic
from .words import NOT_FINITE, entry

F8_E4M3_MAX = 448.0                                # OCP OFP8, table 1
F8_E5M2_MAX = 57344.0                              # the same
SMALLEST_NORMAL = 2.0 ** -126                      # float32


def measure(band: torch.Tensor) -> float:
    """Largest magnitude of some rows. band: (rows, in_features), float32. NaN and inf come through as they are."""
    low, high = torch.aminmax(band)
    return torch.maximum(high, -low).item()


def combine(stats: list[float]) -> float:
    """amax of the tensor from the amax of its bands. Raises ValueError when the weight holds NaN or inf: a scale would hide
    them."""
    amax = torch.tensor(stats, dtype=torch.float32).amax().item()
    if not 0.0 <= amax < float("inf"):
        raise ValueError(NOT_FINITE)
    return amax


def weight_scale(amax: float, largest: float = F8_E4M3_MAX) -> torch.Tensor:
    """() float32: amax / largest, and 1 where that is zero."""
    scale = torch.tensor(amax, dtype=torch.float32) / largest
    return scale if scale > 0 else torch.ones(())


@dataclass(frozen=True)
class Fp8:
    """One of the two FP8 formats. MAX: its largest finite value; MANTISSA, SMALLEST: its mantissa bits and the exponent of its
    smallest normal value."""

    NAME: str
    STORED: torch.dtype
    MAX: float
    MANTISSA: int
    SMALLEST: int
    GROUPS: ClassVar[Mapping[str, int]] = MappingProxyType({})
    CONSTANTS: ClassVar[tuple[str, ...]] = ("_scale",)
    STOCHASTIC: ClassVar[bool] = True
    measure = staticmethod(measure)
    combine = staticmethod(combine)

    @property
    def INPUT_AMAX(self) -> float:
        """The `input_scale` that ComfyUI reads is an activation's amax / this."""
        return self.MAX

    def outputs(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Suffix -> (shape, dtype) of everything stored for a weight of this shape, known before it has values."""
        return {"": (shape, self.STORED), "_scale": ((), torch.float32)}

    def constants(self, amax: float) -> dict[str, torch.Tensor]:
        """The stored tensors that belong to the whole weight: `_scale`, () float32."""
        return {"_scale": weight_scale(amax, self.MAX)}

    def quantize(self, band: torch.Tensor, amax: float, scratch: torch.Tensor | None = None, *,
                 importance: torch.Tensor | None = None, noise: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Codes of some rows.

        band: (rows, in_features) float32, not modified; amax: of the whole tensor, from `combine`.
        scratch: float32 of the band's shape, overwritten, saves an allocation; None allocates. importance: ignored, no choice here
        is better than rounding. noise: (rows, in_features) uniform [0, 1) rounds stochastically, None to nearest even.
        """
        scale = weight_scale(amax, self.MAX)
        found = compiled_for(band) if noise is None else None
        if found and scale >= SMALLEST_NORMAL:
            return {"": found.fp8.encode(band, (1.0 / scale).item(), self.STORED)}
        if scale < SMALLEST_NORMAL:
            scaled = torch.div(band, scale.item(), out=scratch).clamp_(-self.MAX, self.MAX)
        else:
            scaled = torch.mul(band, (1.0 / scale).item(), out=scratch)
        if noise is not None:
            round_stochastic(scaled.clamp_(-self.MAX, self.MAX), noise, self.MANTISSA, self.SMALLEST)
        return {"": scaled.to(self.STORED)}

    def dequantize(self, parts: dict[str, torch.Tensor], rows: list[int] | None = None) -> torch.Tensor:
        """float32 weight from `""` (any rows, STORED) and `_scale`. rows: which of them, None: all."""
        codes = parts[""] if rows is None else parts[""][rows]
        return codes.float() * parts["_scale"].to(codes.device)

    def comfy_quant(self, *, full_precision: bool) -> dict:
        """What ComfyUI reads from `<layer>.comfy_quant`; see words.entry."""
        return entry(self.NAME, full_precision=full_precision)


E4M3 = Fp8("float8_e4m3fn", torch.float8_e4m3fn, F8_E4M3_MAX, 3, -6)       # OCP OFP8, table 1
E5M2 = Fp8("float8_e5m2", torch.float8_e5m2, F8_E5M2_MAX, 2, -14)
