"""NVFP4: comfy-kitchen's eager code and a plain float64 search over all scales are the oracles, fed the same weight."""
import comfy_kitchen
import pytest
import torch
from comfy_kitchen.float_utils import from_blocked, unpack_uint4
from comfy_kitchen.tensor import TensorCoreNVFP4Layout
from hypothesis import given, settings
from hypothesis import strategies as st
from wan22_master.quant import backend as quant_backend
from wan22_master.quant import nvfp4, nvfp4_codes, nvfp4_search

SHAPES = [(128, 64), (1, 1), (5, 3), (257, 130), (144, 640)]
GRID = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)         # OCP Microscaling specification, FP4
FORMS = {"fast": nvfp4.FAST, "balanced": nvfp4.BALANCED, "best": nvfp4.BEST}


def of(kind: str, shape: tuple[int, int]) -> torch.Tensor:
    """Weights of a distribution, float32; the first of several rows is zero, and one zero is negative."""
    normal = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    weight = {"gaussian": 0.03 * normal, "heavy": normal ** 5, "tiny": 1e-30 * normal, "large": 1e30 * normal,
              "bfloat16": normal.bfloat16().float(), "columns": normal * torch.logspace(-6, 0, shape[1]),
              "subnormal": 1e-37 * normal}[kind]
    if shape[0] > 1:
        weight[0], weight[-1, -1] = 0, -0.0
        weight[0, 0] = -0.0
    return weight


def stored(weight: torch.Tensor, form: nvfp4.Nvfp4 = nvfp4.FAST, **options) -> dict[str, torch.Tensor]:
    """All stored tensors of a weight."""
    amax = form.combine([form.measure(weight)])
    return {**form.quantize(weight, amax, **options), **form.constants(amax)}


def codes(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """comfy-kitchen's reading of the stored bytes, float64 (rows, columns)."""
    return comfy_kitchen.dequantize_nvfp4(parts[""], parts["_scale_2"], parts["_scale"], torch.float32).double()


def scale_bytes(parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """E4M3 bytes of the block scales in plain order, by comfy-kitchen."""
    return from_blocked(parts["_scale"].view(torch.uint8), len(parts[""]), parts[""].shape[1] // 8)


def every_error(weight: torch.Tensor, scale_2: torch.Tensor, importance: torch.Tensor | None = None) -> torch.Tensor:
    """Squared error of every block for all 126 scales, float64 (126, rows, blocks of a row)."""
    scales = torch.arange(1, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    blocks = weight.double().view(len(weight), -1, 16)
    share = torch.ones(blocks.shape[1:]).double() if importance is None else importance.double().view(-1, 16)
    errors = []
    for total in scales * scale_2.double():
        distance = (blocks.abs().unsqueeze(3) / total - GRID).abs().amin(3)
        errors.append((share * (total * distance) ** 2).sum(2))
    return torch.stack(errors)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["gaussian", "heavy", "tiny", "large", "bfloat16", "columns", "subnormal"])
def test_fast_writes_comfy_kitchens_bytes(backend, kind, shape):
    weight = of(kind, shape)
    theirs, params = TensorCoreNVFP4Layout.quantize(weight.clone())
    ours = stored(weight)
    assert torch.equal(ours["_scale_2"], params.scale)
    assert torch.equal(ours["_scale"].view(torch.uint8), params.block_scale.view(torch.uint8))
    assert torch.equal(ours[""], theirs)
    back = nvfp4.FAST.dequantize(ours)
    assert torch.equal(back, comfy_kitchen.dequantize_nvfp4(theirs, params.scale, params.block_scale, torch.float32))
    assert {suffix: (tuple(t.shape), t.dtype) for suffix, t in ours.items()} == nvfp4.FAST.outputs(shape)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.floats(width=32, min_value=-2.0**120, max_value=2.0**120), min_size=1, max_size=64))
def test_any_finite_row_is_comfy_kitchens_or_under_its_smallest_scale(values):
    weight = torch.tensor([values], dtype=torch.float32)
    ours = stored(weight)
    assert torch.isfinite(ours["_scale"].float()).all() and torch.isfinite(nvfp4.FAST.dequantize(ours)).all()
    if weight.abs().max() / 2688 > 0:
        theirs, params = TensorCoreNVFP4Layout.quantize(weight.clone())
        assert torch.equal(ours[""], theirs)
        assert torch.equal(ours["_scale"].view(torch.uint8), params.block_scale.view(torch.uint8))


def test_ties_and_the_floats_beside_them_round_as_comfy_kitchens(backend):
    ties = torch.cat([(GRID[1:] + GRID[:-1]) / 2, GRID]).float()
    near = torch.cat([ties, torch.nextafter(ties, torch.tensor(9.0)), torch.nextafter(ties, torch.tensor(-9.0))])
    near = torch.cat([near, -near])
    weight = torch.zeros(1, 16 * (len(near) + 1))
    weight[0, :16] = 2688.0                        # weight_scale_2 = 1
    blocks = weight.view(-1, 16)[1:]
    blocks[:, 3], blocks[:, 8] = 6.0, near         # block scale = 1: the weights themselves are rounded
    assert torch.equal(stored(weight)[""], TensorCoreNVFP4Layout.quantize(weight.clone())[0])


def test_the_vector_of_the_nvfp4_converter():
    row = 448 * torch.tensor([[6, .25, .75, 1.25, 1.75, 2.5, 3.5, 5, -.25, -.75, -1.25, -1.75, -2.5, -3.5, -5, 0]])
    ours = stored(row)
    assert ours[""][0].tolist() == [0x70, 0x22, 0x44, 0x66, 0x8a, 0xac, 0xce, 0xe0]
    assert ours["_scale_2"].item() == 1.0 and ours["_scale"].float()[0, 0] == 448.0


# 5120 columns, 655360 weights: the standard error of the figure is under 0.0001.
@pytest.mark.parametrize(("name", "bound"), [("fast", 0.0955), ("balanced", 0.0820), ("best", 0.0814)])
def test_error_on_gaussian_weights(name, bound):
    weight = 0.03 * torch.randn(128, 5120, generator=torch.Generator().manual_seed(5))
    back = codes(stored(weight, FORMS[name]))
    assert (back - weight).norm() / weight.norm() <= bound


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["balanced", "best"])
@pytest.mark.parametrize("kind", ["gaussian", "heavy", "columns"])
def test_the_search_finds_the_candidate_of_lowest_error(backend, kind, name, weighted):
    weight = of(kind, (32, 320))
    importance = torch.rand(320, generator=torch.Generator().manual_seed(9)) ** 4 * 1e37 if weighted else None
    ours, base = stored(weight, FORMS[name], importance=importance), scale_bytes(stored(weight)).long()
    errors = every_error(weight, ours["_scale_2"], importance)
    offsets = {"balanced": (0, 5, -1, 4, 1), "best": (0, 5, -1, 4, 1, 6, 3, -2)}[name]
    candidates = torch.stack([(base + offset).clamp(1, 126) for offset in offsets])
    of_candidates = errors.gather(0, candidates - 1)
    chosen, living = scale_bytes(ours).long(), weight.view(32, -1, 16).abs().amax(2) > 0
    assert not chosen[~living].any()
    chosen = chosen.clamp(min=1)
    assert (candidates == chosen).any(0)[living].all()
    mine, lowest = errors.gather(0, (chosen - 1)[None])[0], of_candidates.amin(0)
    # The error is summed in float32 and compared on 20 bits; a distance of 0.05 of 6 is known to 24 - 7 bits.
    assert (mine <= lowest * (1 + 2.0 ** -15))[living].all()
    assert (mine >= errors.amin(0) * (1 - 1e-12))[living].all()
    if name == "best" and not weighted:
        assert lowest[living].sum() <= 1.01 * errors.amin(0)[living].sum()       # a relative error of 0.0813 with 8 as with 126


@pytest.mark.parametrize("name", ["balanced", "best"])
def test_codes_of_a_searched_scale_are_the_nearest(backend, name):
    weight = of("heavy", (32, 320))
    ours = stored(weight, FORMS[name])
    total = (ours["_scale_2"] * scale_bytes(ours).view(torch.float8_e4m3fn).float()).double().unsqueeze(2)
    error = (codes(ours) - weight).abs().view(32, -1, 16)
    nearest = (weight.double().abs().view(32, -1, 16, 1) - total.unsqueeze(3) * GRID).abs().amin(3)
    assert torch.allclose(error, nearest, rtol=0, atol=weight.abs().max().item() * 2 ** -22)     # float32 of the reading


def test_equal_errors_keep_the_rounded_scale(backend):
    weight = torch.zeros(16, 32)
    weight[:, :16], weight[:, 16] = 2688.0, 6 * 2.0 ** -3            # one living weight, exact on the 6 of its own scale
    assert torch.equal(scale_bytes(stored(weight, nvfp4.BALANCED)), scale_bytes(stored(weight)))


@pytest.mark.parametrize("name", FORMS)
def test_bands_make_the_bytes_of_the_whole(backend, name):
    weight, form, importance = of("heavy", (300, 208)), FORMS[name], torch.linspace(0, 1, 208)
    amax = form.combine([form.measure(weight[start:start + 128]) for start in (0, 128, 256)])
    whole = stored(weight, form, importance=importance)
    bands = [form.quantize(weight[start:start + 128], amax, torch.empty(weight[start:start + 128].shape), importance=importance)
             for start in (0, 128, 256)]
    for suffix in ("", "_scale"):
        joined = torch.cat([band[suffix].view(torch.uint8) for band in bands])
        assert torch.equal(joined, whole[suffix].view(torch.uint8))


def test_tiles_make_the_bytes_of_the_whole(monkeypatch):
    monkeypatch.setattr(quant_backend, "compiled", lambda: None)
    weight, importance = of("heavy", (33, 208)), torch.linspace(0, 1, 208)
    whole = stored(weight, nvfp4.BEST, importance=importance)
    monkeypatch.setattr(nvfp4_codes, "TILE", 500)
    tiled = stored(weight, nvfp4.BEST, importance=importance)
    assert all(torch.equal(tiled[suffix].view(torch.uint8), whole[suffix].view(torch.uint8)) for suffix in ("", "_scale"))


@pytest.mark.parametrize("kind", ["gaussian", "heavy", "tiny", "large", "bfloat16", "columns"])
def test_compiled_passes_write_the_bytes_of_torch(kind):
    pytest.importorskip("numba", reason="the compiled passes need the optional package numba")
    compiled = quant_backend.compiled().nvfp4
    blocks, importance = nvfp4.blocks_of(of(kind, (70, 1040))), torch.rand(65, 16)
    work, scale_2 = nvfp4_codes.workspace(blocks, None), nvfp4.weight_scale_2(blocks.abs().max().item())
    assert torch.equal(compiled.block_amax(blocks), nvfp4_codes.block_amax(blocks, work))
    candidates = nvfp4_search.neighbours(nvfp4.rounded_scale(compiled.block_amax(blocks), scale_2), nvfp4_search.BEST)
    for weight in (None, importance):
        chosen = nvfp4_search.search(blocks, candidates, scale_2, weight, work=work)
        assert torch.equal(compiled.search(blocks, candidates, scale_2, weight), chosen)
    total = scale_2 * nvfp4_search.value(chosen)
    assert torch.equal(compiled.encode(blocks, total), nvfp4_codes.encode(blocks, total, work))


@pytest.mark.parametrize("name", FORMS)
def test_an_all_zero_weight_is_exact(backend, name):
    ours = stored(torch.zeros(5, 20) * -1, FORMS[name])
    assert ours["_scale_2"].item() == 1.0
    assert not ours[""].any() and not ours["_scale"].view(torch.uint8).any()


@pytest.mark.parametrize("name", FORMS)
def test_where_comfy_kitchens_tensor_scale_is_zero_ours_keeps_the_weight(backend, name):
    weight = torch.tensor([[1e-42, -5e-43, 0.0]])
    theirs = TensorCoreNVFP4Layout.dequantize(*TensorCoreNVFP4Layout.quantize(weight.clone()))
    assert not theirs.nan_to_num(0).any()          # NaN in the padding
    back = codes(stored(weight, FORMS[name]))[:1, :3]
    assert torch.allclose(back, weight.double(), rtol=1 / 4, atol=0)             # 1 mantissa bit


def test_a_block_whose_scale_rounds_to_zero_is_lost_by_fast_only(backend):
    weight = torch.zeros(16, 32)
    weight[:, :16], weight[:, 16:] = 2688.0, 2.0 ** -9                # weight_scale_2 = 1; 2**-9 / 6 is under half of E4M3's 2**-9
    assert not codes(stored(weight))[:, 16:].any()
    assert torch.equal(codes(stored(weight, nvfp4.BALANCED))[:, 16:], weight[:, 16:].double())


def test_stochastic_rounding_takes_a_neighbour_and_is_unbiased():
    rows, draws = of("gaussian", (16, 64)), 1000
    weight, base = rows.repeat(draws, 1), scale_bytes(stored(rows))
    total = (nvfp4.weight_scale_2(rows.abs().max().item()) * base.view(torch.float8_e4m3fn).float()).double()
    size = (rows.double().view(16, -1, 16) / total.clamp(min=1e-30).unsqueeze(2)).abs().clamp(max=6).view(16, 64)
    upper = torch.searchsorted(GRID, size.clamp(max=5.999), right=True)
    low, step = GRID[upper - 1], GRID[upper] - GRID[upper - 1]
    parts = stored(weight, noise=torch.rand(weight.shape, generator=torch.Generator().manual_seed(3)))
    drawn = nvfp4_codes.decode(parts[""]).double().view(draws, 16, 64)
    assert torch.equal(scale_bytes(parts), base.repeat(draws, 1))
    assert torch.equal(torch.signbit(drawn[0, 1:-1]), torch.signbit(rows[1:-1]))
    assert ((drawn.abs() == low) | (drawn.abs() == low + step)).all()
    up = ((size - low) / step).clamp(0, 1)
    error = step * (up * (1 - up) / draws).sqrt()
    assert ((drawn.abs().mean(0) - size).abs() <= 5 * error + 1e-6).all()        # 5 standard errors for 1024 means


@pytest.mark.parametrize("noise", [0.0, 1 - 2.0 ** -24])
def test_weights_on_the_grid_stay_under_stochastic_rounding(noise):
    weight = torch.cat([torch.full((16, 16), 2688.0), GRID.float().repeat(16, 1), -GRID.float().repeat(16, 1)], 1)
    assert torch.equal(codes(stored(weight, noise=torch.full(weight.shape, noise))).float(), weight)


def test_chosen_rows_are_read_as_the_whole_is():
    weight = of("heavy", (200, 48))
    parts = stored(weight, nvfp4.BALANCED)
    assert torch.equal(nvfp4.BALANCED.dequantize(parts, [0, 7, 130, 199]), nvfp4.BALANCED.dequantize(parts)[[0, 7, 130, 199]])


def test_even_columns_lie_in_the_high_nibble():
    weight = torch.zeros(16, 16)
    weight[:, 0], weight[:, 1] = 6.0, -0.5
    assert unpack_uint4(stored(weight)[""], hi_first=True)[0, :3].tolist() == [7, 9, 0]


def test_the_weight_is_not_changed_and_scratch_changes_no_byte(backend):
    weight = of("gaussian", (128, 256))
    before = weight.clone()
    with_scratch = stored(weight, nvfp4.BALANCED, scratch=torch.empty(128, 256))
    assert torch.equal(weight.view(torch.int32), before.view(torch.int32))
    assert torch.equal(with_scratch[""], stored(weight, nvfp4.BALANCED)[""])


def test_a_band_at_an_odd_offset_of_its_storage(backend):
    weight = of("gaussian", (16, 32))
    odd = torch.cat([torch.zeros(1), weight.flatten()])[1:].view(16, 32)
    scratch = torch.empty(16 * 32 * 40 + 1)[1:].view(-1, 32)
    assert torch.equal(stored(odd, nvfp4.BALANCED, scratch=scratch)[""], stored(weight, nvfp4.BALANCED)[""])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_inf_are_refused(bad):
    weight = torch.ones(3, 3)
    weight[1, 2] = bad
    with pytest.raises(ValueError, match="NaN or inf"):
        stored(weight)


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_an_importance_that_is_none_is_refused(bad):
    with pytest.raises(ValueError, match="calibrate again"):
        stored(torch.ones(16, 16), nvfp4.BALANCED, importance=torch.tensor([1.0] * 15 + [bad]))


def test_shapes_and_searches_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="expected a matrix"):
        nvfp4.FAST.outputs((4, 4, 4))
    with pytest.raises(ValueError, match="search is one of fast, balanced, best"):
        nvfp4.Nvfp4("slow")


@pytest.mark.gpu
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("kind", ["gaussian", "heavy", "large", "columns"])
def test_a_gpu_writes_the_bytes_of_the_cpu(kind, name):
    weight = of(kind, (257, 640))
    ours, there = stored(weight, FORMS[name]), stored(weight.cuda(), FORMS[name])
    assert all(torch.equal(ours[suffix].view(torch.uint8), there[suffix].cpu().view(torch.uint8)) for suffix in ("", "_scale"))
