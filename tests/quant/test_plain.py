"""BF16, FP16, FP32: numpy and plain float64 rounding are the oracles."""
import numpy as np
import pytest
import torch
from wan22_master.quant.formats import quantize
from wan22_master.quant.plain import KEPT


def round_to_bfloat16(weight: torch.Tensor) -> torch.Tensor:
    """Nearest, ties to even, by integer arithmetic on float32's bits; finite values only."""
    bits = weight.numpy().view(np.uint32).astype(np.uint64)
    return torch.from_numpy(((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).view(np.int16)).view(torch.bfloat16)


def test_bf16_is_rounded_to_nearest_even():
    weight = torch.randn(200, 100) * 10.0 ** torch.randint(-30, 30, (200, 100))
    assert torch.equal(quantize(weight, "bf16")[""], round_to_bfloat16(weight))


def test_fp16_equals_numpys_rounding():
    weight = torch.randn(200, 100) * 10.0 ** torch.randint(-8, 4, (200, 100))
    weight = weight.clamp(-65000, 65000)
    assert np.array_equal(quantize(weight, "fp16")[""].numpy(), weight.numpy().astype(np.float16))


def test_fp32_is_a_copy_of_the_same_bits():
    weight = torch.randn(5, 7)
    stored = quantize(weight, "fp32")[""]
    assert torch.equal(stored, weight)
    weight.zero_()
    assert stored.abs().sum() > 0                  # the caller's buffer is used again for the next tensor


def test_what_overflows_fp16_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"7e\+04 does not fit into fp16; choose bf16 or fp32"):
        quantize(torch.tensor([[7e4]]), "fp16")


def test_a_kept_tensor_that_overflows_names_the_bases_dtype_and_the_way_out():
    with pytest.raises(ValueError, match="does not fit into fp16; this tensor keeps the base's fp16; choose fp32, or a bf16 base"):
        KEPT[torch.float16].quantize(torch.tensor([7e4]), None)
    with pytest.raises(ValueError, match="does not fit into bf16; this tensor keeps the base's bf16; choose fp32, or a fp32 base"):
        KEPT[torch.bfloat16].quantize(torch.tensor([3.4e38]), None)     # halfway to the next power of two


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
def test_nan_and_inf_are_refused(name):
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="NaN or inf"):
            quantize(torch.tensor([[1.0, bad]]), name)


def test_large_finite_values_are_not_taken_for_inf():
    weight = torch.full((2, 2), 3e38)              # the sum of squares overflows, the values do not
    assert torch.isfinite(quantize(weight, "bf16")[""]).all()
