"""FP8 E4M3 with one float32 scale per tensor, as ComfyUI's `float8_e4m3fn` stores it.

    weight_scale = amax / 448            codes = RNE_e4m3(weight * (1 / weight_scale))          read back: codes * weight_scale

448 is the largest finite E4M3 value (OCP OFP8 specification, table 1). 1 / weight_scale is rounded to float32 before the product:
the order of comfy-kitchen's eager `quantize_per_tensor_fp8`, so codes are equal to its codes on float32 input. RNE = round to
nearest, ties to even.
No clamp is needed: three roundings keep |weight| / weight_scale under 448 * (1 + 2**-22), and E4M3 rounds everything under 464 to
448.

Two cases differ from comfy-kitchen, which writes NaN there: an all-zero tensor gets scale 1 and codes 0, and a tensor whose scale
would be subnormal (amax < 448 * 2**-126) is divided instead of multiplied, because 1 / weight_scale would be infinite.
"""
import torch

NAME = "float8_e4m3fn"
F8_E4M3_MAX = 448.0                                # OCP OFP8, table 1
SMALLEST_NORMAL = 2.0 ** -126                      # float32
STORED = torch.float8_e4m3fn


def outputs(shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Suffix -> (shape, dtype) of everything stored for a weight of this shape, known before it has values."""
    return {"": (shape, STORED), "_scale": ((), torch.float32)}


def measure(band: torch.Tensor) -> float:
    """Largest magnitude of some rows. band: (rows, in_features), float32. NaN and inf come through as they are."""
    low, high = torch.aminmax(band)
    return torch.maximum(high, -low).item()


def combine(stats: list[float]) -> float:
    """amax of the tensor from the amax of its bands. Raises ValueError when the weight holds NaN or inf: a scale would hide
    them."""
    amax = torch.tensor(stats, dtype=torch.float32).amax().item()
    if not 0.0 <= amax < float("inf"):
        raise ValueError("weight holds NaN or inf; check the LoRA strengths, or the file it came from")
    return amax


def weight_scale(amax: float) -> torch.Tensor:
    """() float32: amax / 448, and 1 where that is zero."""
    scale = torch.tensor(amax, dtype=torch.float32) / F8_E4M3_MAX
    return scale if scale > 0 else torch.ones(())


def constants(amax: float) -> dict[str, torch.Tensor]:
    """The stored tensors that belong to the whole weight: `_scale`, () float32."""
    return {"_scale": weight_scale(amax)}


def quantize(band: torch.Tensor, amax: float, scratch: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
    """Codes of some rows.

    band: (rows, in_features) float32, not modified; amax: of the whole tensor, from `combine`.
    scratch: float32 of the band's shape, overwritten, saves an allocation; None allocates.
    """
    scale = weight_scale(amax).to(band.device)
    if scale < SMALLEST_NORMAL:
        return {"": (band / scale).clamp_(-F8_E4M3_MAX, F8_E4M3_MAX).to(STORED)}
    return {"": torch.mul(band, 1.0 / scale, out=scratch).to(STORED)}


def dequantize(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """float32 weight from `""` (any rows, float8_e4m3fn) and `_scale`."""
    return parts[""].float() * parts["_scale"].to(parts[""].device)


def comfy_quant(*, full_precision: bool) -> dict:
    """What ComfyUI reads from `<layer>.comfy_quant` (comfy/ops.py, mixed_precision_ops).

    full_precision: the weight is dequantized and multiplied in 16 bit; the activations are never quantized.
    """
    return {"format": NAME, "full_precision_matrix_mult": True} if full_precision else {"format": NAME}
