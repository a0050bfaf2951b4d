"""BF16, FP16 and FP32: stored as merged, rounded once to nearest.

Relative error of one rounding, on Gaussian weights: BF16 0.0017 (8 significant bits), FP16 0.0002 (11). FP16 ends at 65504 and
loses bits below 2**-14 = 6.1e-5; Wan's weights fit, and a small delta keeps eight times more of itself than in BF16.
"""
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch

from .words import NOT_FINITE


@dataclass(frozen=True)
class Plain:
    """A floating dtype without scales; the same functions as a quantized format, `measure` is absent."""

    NAME: str
    STORED: torch.dtype
    kept: str = ""                                 # why this dtype, where it is not the format that was asked for
    measure = None                                 # nothing about the whole tensor has to be known
    GROUPS, CONSTANTS, INPUT_AMAX, STOCHASTIC = MappingProxyType({}), (), None, False

    def outputs(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Suffix -> (shape, dtype) of what is stored."""
        return {"": (shape, self.STORED)}

    def constants(self, stats: None) -> dict[str, torch.Tensor]:
        """A plain tensor has no scales."""
        return {}

    def quantize(self, band: torch.Tensor, stats: None, scratch: torch.Tensor | None = None, *, importance: None = None,
                 noise: None = None) -> dict[str, torch.Tensor]:
        """Rows in the stored dtype. band: float32, not modified. Raises ValueError when a finite value overflows the dtype, or is
        NaN or inf."""
        stored = band.to(self.STORED)
        # The sum of squares of a finite tensor may overflow, a NaN or inf never comes out finite: one fast pass, the slow one only
        # in doubt.
        flat = stored.reshape(-1).float() if torch.float16 == self.STORED else band.reshape(-1)
        if not torch.isfinite(torch.dot(flat, flat)) and not torch.isfinite(stored).all():
            if torch.isfinite(band).all():
                many = int((~torch.isfinite(stored)).sum())
                others = f" and {many - 1} more" if many > 1 else ""
                largest = band.abs().amax().item()
                raise ValueError(f"a value of {largest:.3g}{others} does not fit into {self.NAME}; {self._way_out()}")
            raise ValueError(NOT_FINITE)
        return {"": stored.clone() if stored is band else stored}

    def _way_out(self) -> str:
        if self.NAME in GGUF_FLOATS:
            return "choose BF16 or F32 as format, or bf16 for kept_dtype beside a quantized one"
        wider = "bf16" if self.NAME == "fp16" else "fp32"
        ways = {"base": f"this tensor keeps the base's {self.NAME}; choose fp32, or a {wider} base",
                "asked": "choose bf16, or source, for kept_dtype", "": "choose bf16 or fp32"}
        return ways[self.kept]

    def dequantize(self, parts: dict[str, torch.Tensor], rows: list[int] | None = None) -> torch.Tensor:
        """float32 again, of all rows or of those."""
        return (parts[""] if rows is None else parts[""][rows]).float()


BF16, FP16, FP32 = Plain("bf16", torch.bfloat16), Plain("fp16", torch.float16), Plain("fp32", torch.float32)
GGUF_FLOATS = {"BF16": Plain("BF16", torch.bfloat16), "F16": Plain("F16", torch.float16), "F32": Plain("F32", torch.float32)}
PLAIN = {"bf16": BF16, "fp16": FP16, "fp32": FP32}
KEPT = {plain.STORED: replace(plain, kept="base") for plain in (BF16, FP16, FP32)}


def as_kept(name: str) -> Plain:
    """bf16 or fp16 for weights beside those that are quantized."""
    return replace(PLAIN[name], kept="asked")
