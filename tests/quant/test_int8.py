"""INT8: comfy-kitchen's eager code is the oracle, fed the same weight, never our scale."""
import pytest
import torch
from comfy_kitchen.backends.eager.quantization import rotate_int8_convrot_weight
from comfy_kitchen.tensor import TensorWiseINT8Layout
from hypothesis import given, settings
from hypothesis import strategies as st
from wan22_master.quant.int8 import CONVROT, ROW, TENSOR, Int8

FORMS = {"tensor": TENSOR, "row": ROW, "convrot": CONVROT}
SHAPES = [(128, 256), (1, 256), (5, 512), (300, 768)]


def of(kind: str, shape: tuple[int, int]) -> torch.Tensor:
    """Weights of a distribution, float32."""
    generator = torch.Generator().manual_seed(sum(shape))
    normal = torch.randn(shape, generator=generator)
    return {"gaussian": 0.03 * normal, "heavy": normal * normal.square().square(), "tiny": 1e-26 * normal, "large": 1e20 * normal,
            "huge": 1e36 * normal, "columns": normal * torch.randn(shape[1], generator=generator).exp()}[kind]


def quantize(weight: torch.Tensor, form: Int8, **more) -> dict[str, torch.Tensor]:
    """The whole tensor at once."""
    amax = form.combine([form.measure(weight)]) if form.measure else None
    return {**form.quantize(weight, amax, **more), **form.constants(amax)}


def kitchen(weight: torch.Tensor, form: Int8):
    """comfy-kitchen's codes and parameters."""
    return TensorWiseINT8Layout.quantize(weight.clone(), per_channel=form is not TENSOR, convrot=form is CONVROT)


@pytest.mark.parametrize("shape", [*SHAPES, (3, 7)], ids=str)
@pytest.mark.parametrize("kind", ["gaussian", "heavy", "tiny", "large", "huge", "columns"])
@pytest.mark.parametrize("form", [TENSOR, ROW], ids=["tensor", "row"])
def test_codes_and_scales_equal_comfy_kitchens(kind, shape, form):
    weight = of(kind, shape)
    codes, params = kitchen(weight, form)
    ours = quantize(weight, form)
    assert torch.equal(ours["_scale"], params.scale)
    assert torch.equal(ours[""], codes)
    assert torch.equal(form.dequantize(ours), TensorWiseINT8Layout.dequantize(codes, params))


@pytest.mark.parametrize("kind", ["gaussian", "heavy", "large", "columns"])
def test_rotated_codes_are_comfy_kitchens_but_for_ties(kind):
    weight = of(kind, (100, 5120))
    codes, params = kitchen(weight, CONVROT)
    ours = quantize(weight, CONVROT)
    # The two orders of adding differ by 2e-6 of a standard deviation, a row's amax by as much of itself.
    assert torch.allclose(ours["_scale"], params.scale, rtol=2e-6, atol=0)
    off = (ours[""].int() - codes.int()).abs()
    assert off.max() <= 1
    assert off.sum() <= 30e-6 * off.numel()                   # measured 4 to 8 of a million: values within 1e-5 of a tie
    theirs = TensorWiseINT8Layout.dequantize(ours[""], params.__class__(**{**vars(params), "scale": ours["_scale"]}))
    assert (CONVROT.dequantize(ours) - theirs).norm() <= 1e-6 * theirs.norm()      # 256 roundings of 2**-24


@settings(deadline=None, max_examples=200)
@given(st.lists(st.floats(width=32, min_value=-2.0**120, max_value=2.0**120), min_size=1, max_size=64),
       st.sampled_from([TENSOR, ROW]))
def test_any_finite_row_equals_comfy_kitchens(values, form):
    weight = torch.tensor([values], dtype=torch.float32)
    codes, params = kitchen(weight, form)
    ours = quantize(weight, form)
    assert torch.equal(ours[""], codes)
    assert torch.equal(ours["_scale"], params.scale)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_bands_of_a_tensor_make_the_bytes_of_the_whole(form):
    weight = of("gaussian", (300, 768))
    whole, cuts = quantize(weight, form), (0, 128, 256)
    amax = form.combine([form.measure(weight[cut:cut + 128]) for cut in cuts]) if form.measure else None
    bands = [form.quantize(weight[cut:cut + 128], amax, torch.empty_like(weight[cut:cut + 128])) for cut in cuts]
    for suffix in bands[0]:
        assert torch.equal(torch.cat([band[suffix] for band in bands]), whole[suffix])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_zeros_read_back_as_zeros(form):
    weight = torch.zeros(3, 512)
    weight[1, 7] = 0.5 * (form is not TENSOR)                 # a row of zeros beside another one
    ours = quantize(weight, form)
    assert torch.isfinite(ours["_scale"]).all()
    assert (ours["_scale"] > 0).all()
    assert not form.dequantize(ours)[[0, 2]].any()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_noise_picks_neighbours_whose_mean_is_the_weight(form):
    weight = 0.3 * torch.randn(4, 256, generator=torch.Generator().manual_seed(3))
    nearest = quantize(weight, form)
    generator, total, count = torch.Generator().manual_seed(4), torch.zeros(4, 256, dtype=torch.float64), 400
    for _ in range(count):
        ours = quantize(weight, form, noise=torch.rand(4, 256, generator=generator))
        assert torch.equal(ours["_scale"], nearest["_scale"])
        assert (ours[""].int() - nearest[""].int()).abs().max() <= 1
        total += form.dequantize(ours)
    scale = nearest["_scale"].max()
    assert (total / count - weight).abs().max() < 6 * 0.5 * scale / count ** 0.5   # 6 sigma of a coin's mean
    assert (quantize(weight, form, noise=torch.full((4, 256), 1 - 2.0 ** -24))[""] <= nearest[""]).all()


@pytest.mark.parametrize("form", [TENSOR, ROW], ids=["tensor", "row"])
def test_noise_leaves_what_needs_no_rounding(form):
    weight = torch.arange(-127.0, 128.0).repeat(2, 1)
    for noise in (0.0, 0.5, 1 - 2.0 ** -24):
        assert torch.equal(quantize(weight, form, noise=torch.full_like(weight, noise))[""].float(), weight)


def test_noise_keeps_the_largest_weight_in_range():
    weight = -torch.rand(2000, 1, generator=torch.Generator().manual_seed(5))
    assert (weight / (-weight / 127) < -127).any()            # two roundings may lead past -127, whose lower neighbour is -128
    codes = ROW.quantize(weight, None, noise=torch.full_like(weight, 1 - 2.0 ** -24))[""]
    assert codes.min() == codes.max() == -127


def test_noise_of_a_column_rounds_that_rotated_column():
    weight = of("gaussian", (20, 512))
    upper = torch.rand(20, 512, generator=torch.Generator().manual_seed(6)) < 0.5
    ours = quantize(weight, CONVROT, noise=torch.where(upper, 0.0, 1 - 2.0 ** -24))
    exact = rotate_int8_convrot_weight(weight.double(), 256) / ours["_scale"].double()
    clear = (exact - exact.round()).abs() > 1e-4              # 127 * 1e-6 is what the float32 rotation may be off
    assert clear.float().mean() > 0.99
    assert torch.equal(ours[""][clear].double(), torch.where(upper, exact.ceil(), exact.floor())[clear])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_nan_and_inf_are_refused(form, bad):
    weight = torch.ones(3, 256)
    weight[1, 2] = bad
    with pytest.raises(ValueError, match="NaN or inf"):
        quantize(weight, form)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_scratch_is_used_and_the_weight_is_not_changed(form):
    weight = of("gaussian", (8, 256))
    before = weight.clone()
    with_scratch = quantize(weight, form, scratch=torch.empty(8, 256))
    assert torch.equal(weight, before)
    assert torch.equal(with_scratch[""], quantize(weight, form)[""])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_planned_outputs_are_what_quantize_returns(form):
    for shape in SHAPES:
        ours = quantize(torch.ones(shape), form)
        assert {suffix: (tuple(t.shape), t.dtype) for suffix, t in ours.items()} == form.outputs(shape)
        assert {*form.CONSTANTS} == {*form.constants(1.0)}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_some_rows_read_back_as_they_do_among_all(form):
    ours = quantize(of("columns", (40, 512)), form)
    assert torch.equal(form.dequantize(ours, [3, 39, 0]), form.dequantize(ours)[[3, 39, 0]])


def test_rotation_needs_groups_of_256_columns():
    assert ROW.outputs((4, 200))
    with pytest.raises(ValueError, match=r"4x200; choose float8_e4m3fn, or int8_tensorwise with scaling by row"):
        CONVROT.outputs((4, 200))


def test_comfyui_is_told_of_the_rotation_and_the_precision():
    assert ROW.comfy_quant(full_precision=False) == TENSOR.comfy_quant(full_precision=False) == {"format": "int8_tensorwise"}
    assert CONVROT.comfy_quant(full_precision=True) == {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": 256,
                                                        "full_precision_matrix_mult": True}
