"""What a finished output says of its quality, against comfy-kitchen's reading of the finished file and plain float64."""

import pytest
import torch
from wan22_master.engine.jobs import output
from wan22_master.engine.jobs.sample import rows_of
from wan22_master.tests.engine import kitchen, tiny

FFN = 512
LAYERS = sorted(tiny.linears(1))
FORMS = ["float8_e4m3fn", "float8_e5m2", "mxfp8", "int8_tensorwise", "convrot_w4a4", "asym_w4a8_int8", "keep"]
PLAN = dict(zip(LAYERS, FORMS, strict=False))      # the last three are nvfp4
MERGED = [layer for layer in LAYERS if not layer.endswith("cross_attn.o")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(section of the report, tensors, merge in float64, LoRA) of one file in every format."""
    folder, before = tmp_path_factory.mktemp("quality"), tiny.DIM
    tiny.DIM = 256
    try:
        weights, lora = tiny.base(blocks=1, ffn=FFN), tiny.lora(layers=MERGED, ffn=FFN, size=2e-4)
        entry = {"files": {"model": tiny.save(folder / "l.safetensors", lora)}}
        wish = tiny.recipe(folder / "out", {"model": tiny.save(folder / "m.safetensors", weights)}, [entry],
                           [{"format": "nvfp4", "plan": "mix", "layers": {"model": PLAN}}], save={"name": "%title%"})
        [told] = tiny.go(wish, folder / "r")["experts"][0]["outputs"]
    finally:
        tiny.DIM = before
    return told, tiny.load(folder / "out", "mix.safetensors"), tiny.merge64(weights, [(lora, 1.0)]), (weights, lora)


def rows(layer, wanted):
    return rows_of(f"{layer}.weight", len(wanted[f"{layer}.weight"]))


def lost(made, layers):
    """Relative error of the sampled rows of some layers, float64."""
    _, tensors, wanted, _ = made
    sums = torch.zeros(2, dtype=torch.float64)
    for layer in layers:
        weight = wanted[f"{layer}.weight"]
        away = kitchen.decode(tensors, layer, tuple(weight.shape)).double() - weight
        sums += torch.stack([away[rows(layer, wanted)].square().sum(), weight[rows(layer, wanted)].square().sum()])
    return (sums[0] / sums[1]).sqrt().item()


def test_the_error_of_a_format_is_that_of_all_its_layers_as_comfy_kitchen_reads_them(made):
    told, names = made[0]["formats"], {layer: PLAN.get(layer, "nvfp4") for layer in LAYERS}
    assert set(told) == set(names.values()) - {"keep"}
    for name, each in told.items():
        mine = [layer for layer, form in names.items() if form == name]
        assert each["layers"] == len(mine) and each["error"] == pytest.approx(lost(made, mine), rel=1e-5)  # W' is float32 there
    assert made[0]["error"] == pytest.approx(lost(made, [layer for layer in LAYERS if names[layer] != "keep"]), rel=1e-5)


def test_every_quantized_layer_is_told_with_its_format_and_error(made):
    told = made[0]["layers"]
    assert [layer for layer, _, _ in told] == [layer for layer in LAYERS if PLAN.get(layer) != "keep"]
    assert {layer: name for layer, name, _ in told} == kitchen.formats(made[1])
    for layer, _, error in told:
        assert error == pytest.approx(lost(made, [layer]), rel=1e-4)


def test_what_survives_is_that_of_the_sampled_rows_of_the_file(made):
    told, tensors, wanted, (weights, lora) = made
    sums = torch.zeros(3, dtype=torch.float64)
    for layer in (layer for layer in MERGED if PLAN.get(layer) != "keep"):
        mine, delta = rows(layer, wanted), tiny.delta64(lora, layer)
        base, decoded = weights[f"{layer}.weight"].double(), kitchen.decode(tensors, layer, tuple(delta.shape)).double()
        moved, delta, noise = (decoded - base)[mine], delta[mine], (decoded - wanted[f"{layer}.weight"])[mine]
        found = torch.stack([(moved * delta).sum(), delta.square().sum(), moved.square().sum()])
        basis = torch.linalg.qr(lora[f"diffusion_model.{layer}.lora_A.weight"].double().T).Q
        each = told["survival"]["layers"][layer]
        assert each["projection"] == pytest.approx((found[0] / found[1]).item(), rel=1e-3)
        assert each["cosine"] == pytest.approx((found[0] / (found[1] * found[2]).sqrt()).item(), rel=1e-3)
        assert each["effect_over_noise"] == pytest.approx(((delta @ basis).norm() / (noise @ basis).norm()).item(), rel=1e-3)
        sums += found
    assert told["survival"]["projection"] == pytest.approx((sums[0] / sums[1]).item(), rel=1e-3)
    assert told["survival"]["cosine"] == pytest.approx((sums[0] / (sums[1] * sums[2]).sqrt()).item(), rel=1e-3)
    assert set(told["survival"]["layers"]) == {layer for layer in MERGED if PLAN.get(layer) != "keep"}


@pytest.mark.parametrize("name", ["float8_e4m3fn", "mxfp8", "int8_tensorwise"])
def test_unchanged_codes_are_those_of_the_base_quantized_alike(made, name):
    told, tensors, wanted, (weights, _) = made
    [layer] = [layer for layer in LAYERS if PLAN.get(layer) == name]
    base, mine = weights[f"{layer}.weight"].float(), rows(layer, wanted)
    if name == "float8_e4m3fn":                    # by the scale of the merge, as the file has it
        scale = tensors[f"{layer}.weight_scale"]
        codes = kitchen.TensorCoreFP8Layout.quantize(base, scale)[0]
    else:                                          # scales of blocks and rows are the base's own
        codes = kitchen.rounded(base, name)[0][""]
    same = codes.view(torch.uint8)[mine] == tensors[f"{layer}.weight"].view(torch.uint8)[mine]
    # int8 is rotated first, with sums rounded otherwise: 8 codes of a million
    assert told["survival"]["layers"][layer]["unchanged"] == pytest.approx(same.double().mean().item(), abs=1e-3)


def test_layers_in_which_the_lora_drowns_are_counted_and_the_worst_come_first(made):
    told = made[0]["survival"]
    effects = {layer: each["effect_over_noise"] for layer, each in told["layers"].items()}
    assert told["drowned"] == sum(effect < 1 for effect in effects.values()) and 0 < told["drowned"] < len(effects)
    assert told["least"] == [[layer, effects[layer]] for layer in sorted(effects, key=effects.get)][:12]
    assert told["standard_error"] > 0 and made[0]["stochastic"] == 0


def test_without_a_merge_nothing_is_said_of_survival_and_a_plain_file_has_no_formats(tmp_path):
    model = {"model": tiny.save(tmp_path / "m.safetensors", tiny.base())}
    report = tiny.go(tiny.recipe(tmp_path / "out", model, formats=["bf16", "nvfp4"]), tmp_path / "r")
    plain, packed = report["experts"][0]["outputs"]
    assert (plain["formats"], plain["layers"], plain["survival"], packed["survival"]) == ({}, [], None, None)
    assert list(packed["formats"]) == ["nvfp4"] and packed["formats"]["nvfp4"]["layers"] == len(tiny.linears())


def test_halves_that_lost_bits_are_counted(tmp_path):
    weights = tiny.base(blocks=1)
    key = "time_projection.1.weight"
    row = [2.0**-14, 2.0**-15, 2.0**-24, 1.5 * 2.0**-24, 2.0**-26, 0.0, 1.0 + 2.0**-7, 3e-5]  # two of them are no half
    weights[key] = torch.tensor(row).bfloat16().repeat(8, 4)
    expected = weights[key].double()
    stored = expected.half()
    wanted = ((stored.abs() < 2.0**-14) & (stored.double() != expected)).sum().item()
    wish = tiny.recipe(tmp_path / "out", {"model": tiny.save(tmp_path / "m.safetensors", weights)},
                       formats=[{"format": "nvfp4", "kept_dtype": "fp16"}])
    [told] = tiny.go(wish, tmp_path / "r")["experts"][0]["outputs"]
    others = sum(((tensor.half().abs() < 2.0**-14) & (tensor.half().double() != tensor.double())).sum().item()
                 for name, tensor in weights.items() if name in ("text_embedding.0.weight",))
    assert told["subnormal"] == wanted + others and wanted == 32 * 2
    assert torch.finfo(torch.float16).smallest_normal == output.SMALLEST_HALF
