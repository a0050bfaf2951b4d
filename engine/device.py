"""Choose where the arithmetic runs, and trust a GPU only after it has computed like the CPU.

"CPU results are the reference": a device that rounds a cast differently, or multiplies float32 with TF32's
10 mantissa bits although told not to, would write other weights than the preview showed.
"""
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from .errors import DEVICE_ERRORS, PlanError

NAMES = ("auto", "cpu", "cuda", "xpu", "mps")
CASTS = (torch.bfloat16, torch.float16, torch.float8_e4m3fn)
SIZE = 256
# float32 has 24 bits of mantissa: 256 products add up to an error below 256 * 2^-24 of the sum of their sizes (Higham 2002,
# section 3.1). TF32 has 11: its products alone are wrong by up to 2^-11, thirty times more.
BOUND = SIZE * 2.0**-24


@dataclass(frozen=True)
class Device:
    """`torch_device` to compute on; `note` says in one sentence why it is this one."""

    torch_device: torch.device
    note: str


@contextmanager
def full_float32() -> Iterator[None]:
    """Multiply float32 as float32 inside, whatever the host program chose.

    torch >= 2.9 has `fp32_precision` for the GPU and for the CPU's oneDNN; `set_float32_matmul_precision` sets both, and oneDNN
    then takes bfloat16 where the processor has it. Asking an older name there raises once the two were mixed. Before 2.9 that
    one choice is all there is (aten/src/ATen/Context.cpp): `allow_tf32` is a view of it, which cannot put "medium" back.
    """
    both = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
    places = [place for place in both if hasattr(place, "fp32_precision")]
    before = [place.fp32_precision for place in places]
    older = None if places else torch.get_float32_matmul_precision()
    try:
        for place in places:
            place.fp32_precision = "ieee"
        if older is not None:
            torch.set_float32_matmul_precision("highest")
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.fp32_precision = value
        if older is not None:
            torch.set_float32_matmul_precision(older)


def _numbers() -> tuple[torch.Tensor, torch.Tensor]:
    """Two (256, 256) float32 matrices: the first from 2^-12 to 2^8 with both signs, the second around 1."""
    draw = torch.Generator().manual_seed(0)
    sizes = torch.exp2(torch.rand(SIZE, SIZE, generator=draw) * 20 - 12)
    return torch.randn(SIZE, SIZE, generator=draw).sign() * sizes, torch.randn(SIZE, SIZE, generator=draw)


def self_test(device: torch.device) -> str | None:
    """None when `device` casts bit for bit like the CPU and multiplies in full float32; else what it does wrong."""
    left, right = _numbers()
    exact, sizes = left.double() @ right.double(), left.double().abs() @ right.double().abs()
    try:
        there = left.to(device)
        for dtype in CASTS:
            if not torch.equal(there.to(dtype).cpu().view(torch.uint8), left.to(dtype).view(torch.uint8)):
                return f"its cast from float32 to {str(dtype).removeprefix('torch.')} differs from the CPU's"
        with full_float32():
            product = (there @ right.to(device)).cpu().double()
    except DEVICE_ERRORS as cause:
        return f"it has no memory left or failed ({str(cause).splitlines()[0]})"
    except (RuntimeError, NotImplementedError, TypeError) as cause:
        return f"it cannot do our casts ({str(cause).splitlines()[0]})"
    if not ((product - exact).abs() <= BOUND * sizes).all():
        return "its float32 matrix product is not float32 (TF32)"
    return None


def _present(name: str) -> bool:
    backend = {"cuda": torch.cuda, "xpu": getattr(torch, "xpu", None), "mps": torch.backends.mps}[name]
    return backend is not None and backend.is_available()


def choose(name: str = "auto") -> Device:
    """The device for `name`: "auto", "cpu", or one of cuda (ROCm too), xpu, mps.

    A device that is missing or fails its self-test is replaced by the CPU, and `note` says why.
    Raises PlanError for a name that is none of these.
    """
    kind = name.split(":")[0]
    if kind not in NAMES:
        raise PlanError(f"device {name!r}: expected one of {', '.join(NAMES)}, choose one of them")
    cpu = torch.device("cpu")
    if kind == "cpu":
        return Device(cpu, "cpu: as chosen")
    if kind == "mps":
        return Device(cpu, "cpu: mps has no float64 and no float8, so the CPU computes")
    candidates = [found for found in ("cuda", "xpu") if _present(found)] if kind == "auto" else [name] if _present(kind) else []
    if not candidates:
        return Device(cpu, "cpu: no GPU that torch can use" if kind == "auto" else f"cpu: torch finds no {kind} device")
    wrong = self_test(torch.device(candidates[0]))
    if wrong:
        return Device(cpu, f"cpu: {candidates[0]} is not used, {wrong}")
    return Device(torch.device(candidates[0]), f"{candidates[0]}: casts and products agree with the CPU")
