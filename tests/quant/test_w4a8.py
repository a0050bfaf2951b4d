"""W4A8: comfy-kitchen's eager code is the oracle, fed the same weight: its decoder for the bytes, its encoder for the error."""
import pytest
import torch
from comfy_kitchen.tensor import w4a8_int8 as kitchen
from wan22_master.quant.w4a8 import OFFSETS, AsymW4A8

FORMS = {search: AsymW4A8(search) for search in OFFSETS}
BALANCED = FORMS["balanced"]
SHAPES = [(128, 256), (1, 256), (5, 512), (300, 768)]


def of(kind: str, shape: tuple[int, int]) -> torch.Tensor:
    """Weights of a distribution, float32."""
    generator = torch.Generator().manual_seed(sum(shape))
    normal = torch.randn(shape, generator=generator)
    if kind == "t5":
        return 0.03 * normal / torch.randn(5, *shape, generator=generator).square().mean(0).sqrt()
    return {"gaussian": 0.03 * normal, "heavy": normal * normal.square().square(), "large": 1e20 * normal, "tiny": 1e-20 * normal,
            "laplace": torch.empty(shape).exponential_(generator=generator) * normal.sign(),
            "columns": normal * torch.randn(shape[1], generator=generator).exp()}[kind]


def quantize(weight: torch.Tensor, form: AsymW4A8 = BALANCED) -> dict[str, torch.Tensor]:
    """The whole tensor at once."""
    return {**form.quantize(weight), **form.constants(None)}


def kitchen_reads(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """comfy-kitchen's decoder, in float32."""
    scales = parts["_s_rel"], parts["_s_channel"]
    return kitchen.dequantize_w4a8_int8_weight(parts[""], *scales, parts["_codebook"], output_dtype=torch.float32)


def error(back: torch.Tensor, weight: torch.Tensor) -> float:
    """Relative to the weight."""
    return ((back.double() - weight).norm() / weight.double().norm()).item()


@pytest.mark.parametrize("kind", ["gaussian", "heavy", "large", "tiny", "columns"])
def test_comfy_kitchen_reads_the_same_weight(kind):
    ours = quantize(of(kind, (130, 768)))
    assert error(BALANCED.dequantize(ours), kitchen_reads(ours).double()) < 1e-6          # 256 roundings of 2**-24


@pytest.mark.parametrize("kind", ["gaussian", "t5", "laplace", "columns", "heavy"])
def test_error_is_below_comfy_kitchens_and_falls_with_the_search(kind):
    weight = of(kind, (16, 5120))
    packed, s_rel, s_channel, _, codebook = kitchen.quantize_w4a8_int8_weight(weight)
    theirs = error(kitchen_reads({"": packed, "_s_rel": s_rel, "_s_channel": s_channel, "_codebook": codebook}), weight)
    fast, balanced, best = (error(kitchen_reads(quantize(weight, form)), weight) for form in FORMS.values())
    assert best < balanced < 0.98 * theirs                    # measured 0.967 to 0.974 of it
    assert balanced < fast < 0.99 * theirs                    # measured 0.979 to 0.985
    assert best < 0.0715                                      # Gaussian 0.0710; 0.0731 is comfy-kitchen's


def test_every_weight_takes_the_nearest_level_of_its_scale():
    weight = of("gaussian", (20, 512))
    ours = quantize(weight)
    codes = torch.stack([ours[""] & 15, ours[""] >> 4 & 15], -1).flatten(1).long()
    levels = (ours["_codebook"] * ours["_s_rel"].float().repeat_interleave(16, 1)[..., None]).round().clamp(-127, 127)
    rotated = torch.cat([part @ _hadamard() for part in weight.double().split(256, 1)], 1) / ours["_s_channel"].double()[:, None]
    off = (levels - rotated[..., None]).abs()
    # 2e-6 of 127 steps: how far the float32 rotation and division may be off, twice over.
    assert (off.gather(2, codes[..., None])[..., 0] <= off.amin(2) + 4e-4).all()


def _hadamard() -> torch.Tensor:
    h4 = torch.tensor([[1, 1, 1, -1], [1, 1, -1, 1], [1, -1, 1, 1], [-1, 1, 1, 1]], dtype=torch.float64)
    return torch.kron(torch.kron(h4, h4), torch.kron(h4, h4)) / 16


def test_comfy_kitchen_multiplies_with_the_parts():
    weight, x = of("gaussian", (24, 512)), torch.randn(6, 512, generator=torch.Generator().manual_seed(1))
    ours = quantize(weight)
    scales = ours["_s_rel"], ours["_s_channel"]
    product = kitchen.w4a8_int8_linear(x, ours[""], *scales, ours["_codebook"], out_dtype=torch.float32)
    assert error(product, x.double() @ BALANCED.dequantize(ours).double().T) < 0.015     # INT8 activations, 0.0088 on Gaussian ones


@pytest.mark.parametrize("search", OFFSETS)
def test_bands_and_threads_do_not_change_the_bytes(search):
    weight, form, threads = of("columns", (300, 1280)), FORMS[search], torch.get_num_threads()
    whole = form.quantize(weight)
    torch.set_num_threads(1)
    try:
        bands = [form.quantize(weight[cut:cut + 128]) for cut in (0, 128, 256)]
    finally:
        torch.set_num_threads(threads)
    for suffix, stored in whole.items():
        assert torch.equal(torch.cat([band[suffix].view(torch.uint8) for band in bands]), stored.view(torch.uint8))


def test_zeros_read_back_as_zeros():
    weight = torch.zeros(4, 512)
    weight[1, 7], weight[2, 300], weight[3] = 0.5, -1e-30, -0.0            # zeros, half a row of them, nearly zeros, negative zeros
    ours = quantize(weight)
    back = kitchen_reads(ours)
    assert torch.isfinite(ours["_s_rel"].float()).all()
    assert torch.isfinite(ours["_s_channel"]).all()
    assert not back[[0, 3]].any()
    assert not back[1, 256:].any()
    assert torch.isfinite(back).all()


def test_blocks_of_very_different_size_stay_finite_and_close():
    sizes = torch.tensor([1e-9, 1.0, 1e3, 0.0]).repeat_interleave(256)
    weight = torch.randn(8, 1024, generator=torch.Generator().manual_seed(2)) * sizes
    back = kitchen_reads(quantize(weight))
    assert error(back, weight) < 0.09                         # 0.071 and what the INT8 levels of 8 rows scatter
    assert not back[:, 768:].any()


def test_the_sign_of_a_scale_is_never_set():
    weight = of("heavy", (64, 512))
    weight[:, :256] = 0
    bytes_ = quantize(-weight)["_s_rel"].view(torch.uint8)
    assert bytes_.min() >= 1                                  # 0 would be no scale
    assert bytes_.max() <= 117                                # 127 is stored as 128, byte 112, and 5 more


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_are_refused(bad):
    weight = torch.ones(3, 256)
    weight[1, 2] = bad
    with pytest.raises(ValueError, match="NaN or inf"):
        quantize(weight)


def test_noise_is_refused():
    assert not BALANCED.STOCHASTIC
    with pytest.raises(ValueError, match="asym_w4a8_int8 has no stochastic rounding"):
        BALANCED.quantize(torch.ones(1, 256), noise=torch.zeros(1, 256))


def test_planned_outputs_are_what_quantize_returns_and_what_comfy_kitchen_takes():
    for shape in SHAPES:
        weight = of("gaussian", shape)
        before, ours = weight.clone(), quantize(weight)
        assert torch.equal(weight, before)
        assert {suffix: (tuple(t.shape), t.dtype) for suffix, t in ours.items()} == BALANCED.outputs(shape)
        kitchen.AsymW4A8Int8Layout.Params(scale=ours["_s_rel"], s_channel=ours["_s_channel"], codebook=ours["_codebook"],
                                          orig_dtype=torch.float32, orig_shape=shape)      # raises when a shape is wrong
    with pytest.raises(ValueError, match="4x200; choose float8_e4m3fn"):
        BALANCED.outputs((4, 200))


def test_some_rows_read_back_as_they_do_among_all():
    ours = quantize(of("columns", (40, 512)))
    assert torch.equal(BALANCED.dequantize(ours, [3, 39, 0]), BALANCED.dequantize(ours)[[3, 39, 0]])


def test_comfyui_is_told_of_the_groups_and_the_precision():
    assert BALANCED.comfy_quant(full_precision=False) == {"format": "asym_w4a8_int8", "group_size": 16, "convrot_groupsize": 256}
    assert BALANCED.comfy_quant(full_precision=True)["full_precision_matrix_mult"] is True
