"""ConvRot W4A4: comfy-kitchen's eager code is the oracle, fed the same weight, never our scale."""
import pytest
import torch
from comfy_kitchen.backends.eager.quantization import rotate_int8_convrot_weight
from comfy_kitchen.tensor.convrot_w4a4 import TensorCoreConvRotW4A4Layout, dequantize_convrot_w4a4_weight
from wan22_master.quant.w4a4 import BALANCED, FAST

FORMS = {"fast": FAST, "balanced": BALANCED}
SHAPES = [(128, 256), (1, 256), (5, 512), (300, 768)]


def of(kind: str, shape: tuple[int, int]) -> torch.Tensor:
    """Weights of a distribution, float32."""
    generator = torch.Generator().manual_seed(sum(shape))
    normal = torch.randn(shape, generator=generator)
    return {"gaussian": 0.03 * normal, "heavy": normal * normal.square().square(), "large": 1e20 * normal,
            "columns": normal * torch.randn(shape[1], generator=generator).exp()}[kind]


def nibbles(packed: torch.Tensor) -> torch.Tensor:
    """Signed codes, the low nibble the even column."""
    both = torch.stack([packed.int() & 15, packed.int() >> 4 & 15], -1).flatten(1)
    return both - 16 * (both > 7).int()


def error(back: torch.Tensor, weight: torch.Tensor) -> float:
    """Relative to the weight."""
    return ((back - weight).norm() / weight.norm()).item()


@pytest.mark.parametrize("kind", ["gaussian", "heavy", "large", "columns"])
def test_fast_is_comfy_kitchens_but_for_ties(kind):
    weight = of(kind, (150, 2560))
    codes, params = TensorCoreConvRotW4A4Layout.quantize(weight.clone())
    ours = FAST.quantize(weight)
    assert torch.allclose(ours["_scale"], params.scale, rtol=2e-6, atol=0)     # the orders of adding, see test_int8
    off = (nibbles(ours[""]) - nibbles(codes)).abs()
    assert off.max() <= 1
    assert off.sum() <= 10e-6 * off.numel()                   # measured 0 to 2 of a million


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_comfy_kitchen_reads_the_same_weight(form):
    weight = of("columns", (130, 768))
    ours = form.quantize(weight)
    theirs = dequantize_convrot_w4a4_weight(ours[""], ours["_scale"])
    assert error(form.dequantize(ours), theirs) < 1e-6        # 256 roundings of 2**-24


@pytest.mark.parametrize(("kind", "less"), [("gaussian", 0.75), ("heavy", 0.82), ("columns", 0.75)])
def test_the_search_leaves_less_error_than_comfy_kitchen(kind, less):
    weight = of(kind, (16, 5120))
    codes, params = TensorCoreConvRotW4A4Layout.quantize(weight.clone())
    theirs = error(dequantize_convrot_w4a4_weight(codes, params.scale), weight)
    # Measured 0.71, 0.76 and 0.70 of it.
    assert error(dequantize_convrot_w4a4_weight(*BALANCED.quantize(weight).values()), weight) < less * theirs


def test_the_search_never_does_worse_in_any_row():
    for kind in ("gaussian", "heavy", "columns"):
        weight = of(kind, (130, 256))
        rest = [(form.dequantize(form.quantize(weight)) - weight).norm(dim=1) for form in (BALANCED, FAST)]
        assert (rest[0] <= rest[1] * (1 + 1e-6)).all()        # equal where 1 is the best factor, but for roundings


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_bands_and_threads_do_not_change_the_bytes(form):
    weight, threads = of("columns", (300, 2560)), torch.get_num_threads()
    whole = form.quantize(weight)
    torch.set_num_threads(1)
    try:
        bands = [form.quantize(weight[cut:cut + 128]) for cut in (0, 128, 256)]
    finally:
        torch.set_num_threads(threads)
    for suffix, stored in whole.items():
        assert torch.equal(torch.cat([band[suffix] for band in bands]), stored)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_zeros_read_back_as_zeros(form):
    weight = torch.zeros(3, 512)
    weight[1, 7] = 0.5
    ours = form.quantize(weight)
    assert torch.isfinite(ours["_scale"]).all()
    assert (ours["_scale"] > 0).all()
    assert not form.dequantize(ours)[[0, 2]].any()


def test_noise_picks_neighbours_whose_mean_is_the_weight():
    weight = 0.3 * torch.randn(4, 256, generator=torch.Generator().manual_seed(3))
    nearest = FAST.quantize(weight)
    generator, total, count = torch.Generator().manual_seed(4), torch.zeros(4, 256, dtype=torch.float64), 400
    for _ in range(count):
        ours = BALANCED.quantize(weight, noise=torch.rand(4, 256, generator=generator))
        assert torch.equal(ours["_scale"], nearest["_scale"])                  # no clipping: it would shift the mean
        assert (nibbles(ours[""]) - nibbles(nearest[""])).abs().max() <= 1
        total += BALANCED.dequantize(ours)
    assert (total / count - weight).abs().max() < 6 * 0.5 * nearest["_scale"].max() / count ** 0.5     # 6 sigma of a coin's mean


def test_noise_of_a_column_rounds_that_rotated_column():
    weight = of("gaussian", (20, 512))
    upper = torch.rand(20, 512, generator=torch.Generator().manual_seed(6)) < 0.5
    ours = FAST.quantize(weight, noise=torch.where(upper, 0.0, 1 - 2.0 ** -24))
    exact = rotate_int8_convrot_weight(weight.double(), 256) / ours["_scale"].double()[:, None]
    clear = (exact - exact.round()).abs() > 1e-4              # 7 * 1e-6 is what the float32 rotation may be off
    assert clear.float().mean() > 0.99
    assert torch.equal(nibbles(ours[""])[clear].double(), torch.where(upper, exact.ceil(), exact.floor())[clear])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_nan_and_inf_are_refused(form, bad):
    weight = torch.ones(3, 256)
    weight[1, 2] = bad
    with pytest.raises(ValueError, match="NaN or inf"):
        form.quantize(weight)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_planned_outputs_are_what_quantize_returns(form):
    for shape in SHAPES:
        weight = of("gaussian", shape)
        before, ours = weight.clone(), form.quantize(weight)
        assert torch.equal(weight, before)
        assert {suffix: (tuple(t.shape), t.dtype) for suffix, t in ours.items()} == form.outputs(shape)
    with pytest.raises(ValueError, match="4x200; choose float8_e4m3fn"):
        form.outputs((4, 200))


def test_some_rows_read_back_as_they_do_among_all():
    ours = BALANCED.quantize(of("columns", (40, 512)))
    assert torch.equal(BALANCED.dequantize(ours, [3, 39, 0]), BALANCED.dequantize(ours)[[3, 39, 0]])


def test_comfyui_is_told_of_the_groups_and_the_precision():
    assert FAST.comfy_quant(full_precision=False) == {"format": "convrot_w4a4", "convrot_groupsize": 256}
    assert FAST.comfy_quant(full_precision=True)["full_precision_matrix_mult"] is True
