"""What is in a finished file beside the codes: input scales, flags, dtypes of what is kept, places; by the safetensors library."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from wan22_master.engine import bands
from wan22_master.engine.errors import PlanError, Stopped
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.quant.formats import QUANTIZED
from wan22_master.tests.engine import kitchen, tiny

FFN = 512
LAYERS = sorted(tiny.linears(1))
FORMATS = sorted(QUANTIZED)
INTS = ["int8_tensorwise", "convrot_w4a4", "asym_w4a8_int8"]
SLOW = "full_precision_matrix_mult"


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """256 columns: a group of the rotated formats."""
    monkeypatch.setattr(tiny, "DIM", 256)


def wish(tmp_path, output, weights=None, **more):
    model = tmp_path / "m.safetensors"
    if not model.exists():
        tiny.save(model, tiny.base(blocks=1, ffn=FFN) if weights is None else weights)
    return tiny.recipe(tmp_path / "out", {"model": str(model)}, more.pop("loras", []), [output], save={"name": "%title%"}, **more)


def made(tmp_path, output, weights=None, **more):
    tiny.go(wish(tmp_path, output, weights, **more), tmp_path / "r")
    return tiny.load(tmp_path / "out", "mix.safetensors")


def of(name, **fields):
    return {"format": name, **{field: {"model": value} if field in ("layers", "full_precision", "input_amax") else value
                               for field, value in fields.items()}}


AMAX = {layer: 0.7 + 3.3 * number for number, layer in enumerate(LAYERS[:6])}


@pytest.mark.parametrize(("name", "largest"), [("float8_e4m3fn", 448.0), ("nvfp4", 2688.0)])
def test_an_input_scale_is_amax_over_the_largest_product_of_codes_and_scales(tmp_path, name, largest):
    found = made(tmp_path, of(name, input_amax=AMAX))
    for layer, amax in AMAX.items():
        scale = found[f"{layer}.input_scale"]
        assert scale.dtype == torch.float32 and scale.shape == () and scale == torch.tensor(amax / largest, dtype=torch.float32)
    # ComfyUI takes 1.0 in silence for E4M3 where there is none; for NVFP4 it measures the input
    others = {layer: found.get(f"{layer}.input_scale") for layer in LAYERS if layer not in AMAX}
    assert all(scale == 1.0 and scale.shape == () if largest == 448 else scale is None for scale in others.values())


@pytest.mark.parametrize("name", ["mxfp8", *INTS, "float8_e5m2"])
def test_formats_whose_input_scale_nothing_reads_have_none(tmp_path, name):
    assert not [key for key in made(tmp_path, of(name, input_amax=AMAX)) if key.endswith("input_scale")]


@pytest.mark.parametrize("name", FORMATS)
def test_fast_activations_flag_nothing_but_what_could_not_be_multiplied(tmp_path, name):
    said = kitchen.settings(made(tmp_path, of(name)))
    assert set(said) == set(LAYERS) and {each["format"] for each in said.values()} == {name}
    assert {each.get(SLOW) for each in said.values()} == ({True} if name == "float8_e5m2" else {None})


@pytest.mark.parametrize("name", FORMATS)
def test_16_bit_activations_flag_layers_without_a_scale_and_never_int_ones(tmp_path, name):
    found = made(tmp_path, of(name, activations="16-bit", input_amax=AMAX))
    slow = {layer for layer, each in kitchen.settings(found).items() if each.get(SLOW) is True}
    scaled = set(AMAX) if name in ("float8_e4m3fn", "nvfp4") else set()
    assert slow == (set() if name in INTS else set(LAYERS) - scaled)
    assert {key.removesuffix(".input_scale") for key in found if key.endswith("input_scale")} == scaled


@pytest.mark.parametrize("name", FORMATS)
def test_a_layer_of_a_list_is_flagged_alone_with_or_without_a_scale(tmp_path, name):
    asked = [LAYERS[0], LAYERS[8]]
    found = made(tmp_path, of(name, full_precision=asked, input_amax=AMAX))
    slow = {layer for layer, each in kitchen.settings(found).items() if SLOW in each}
    assert slow == (set() if name in INTS else set(LAYERS) if name == "float8_e5m2" else set(asked))
    if name == "float8_e4m3fn":
        assert f"{LAYERS[8]}.input_scale" not in found and found[f"{LAYERS[9]}.input_scale"] == 1.0


STORED = {
    "float8_e4m3fn": {"": torch.float8_e4m3fn, "_scale": torch.float32},
    "float8_e5m2": {"": torch.float8_e5m2, "_scale": torch.float32},
    "mxfp8": {"": torch.float8_e4m3fn, "_scale": torch.float8_e8m0fnu},
    "nvfp4": {"": torch.uint8, "_scale": torch.float8_e4m3fn, "_scale_2": torch.float32},
    "int8_tensorwise": {"": torch.int8, "_scale": torch.float32}, "convrot_w4a4": {"": torch.int8, "_scale": torch.float32},
    "asym_w4a8_int8": {"": torch.int8, "_s_rel": torch.float8_e4m3fn, "_s_channel": torch.float32, "_codebook": torch.float32},
}


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_stored_is_shaped_and_read_as_comfy_kitchens_own(tmp_path, name):
    weights = tiny.base(blocks=1, ffn=FFN)
    found = made(tmp_path, of(name), weights)
    for layer in LAYERS:
        weight = weights[f"{layer}.weight"].float()
        parts, decoded = kitchen.rounded(weight, name)
        mine = {key.removeprefix(f"{layer}.weight"): tensor for key, tensor in found.items() if key.startswith(f"{layer}.weight")}
        assert {suffix: tensor.dtype for suffix, tensor in mine.items()} == STORED[name]
        assert {suffix: tensor.shape for suffix, tensor in mine.items()} == {suffix: part.shape for suffix, part in parts.items()}
        ours, theirs = (torch.linalg.norm((each - weight).double()) for each in (
            kitchen.decode(found, layer, tuple(weight.shape)), decoded))
        assert ours <= theirs * 1.0001             # nearest by the same scales, or better ones


def header(path):
    with open(path, "rb") as file:
        found = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    found.pop("__metadata__", None)
    return dict(sorted(found.items(), key=lambda item: item[1]["data_offsets"]))


def test_every_mix_lies_aligned_without_a_hole_and_small_things_come_last(tmp_path):
    layers = {layer: FORMATS[number % len(FORMATS)] for number, layer in enumerate(LAYERS)} | {LAYERS[-1]: "keep"}
    made(tmp_path, of("nvfp4", layers=layers, input_amax=AMAX, kept_dtype="fp16"))
    found = header(tmp_path / "out" / "mix.safetensors")
    with safe_open(tmp_path / "out" / "mix.safetensors", framework="pt") as file:
        sizes = {key: file.get_tensor(key).itemsize for key in found}
    end, start = 0, int.from_bytes((tmp_path / "out" / "mix.safetensors").read_bytes()[:8], "little") + 8
    for key, entry in found.items():
        first, stop = entry["data_offsets"]
        assert first == end and (start + first) % sizes[key] == 0, key
        end = stop
    remarks = [key.endswith(".comfy_quant") for key in found]
    tail = list(found)[remarks.index(True):]       # not hashed while the rest is written
    small = {"comfy_quant", "input_scale", "weight_codebook", "weight_scale_2"}
    assert {key.rsplit(".", 1)[1] for key in tail} == small | {"weight_scale"}  # of FP8, one for the tensor
    assert not {key.rsplit(".", 1)[1] for key in found if key not in tail} & small
    assert all(found[key]["shape"] == [] for key in tail if key.endswith("weight_scale"))


@pytest.mark.parametrize("name", INTS)
@pytest.mark.parametrize("columns", [128, 384])
def test_columns_that_cannot_be_rotated_are_refused_before_the_first_byte_with_key_and_remedy(tmp_path, monkeypatch, name, columns):
    monkeypatch.setattr(tiny, "DIM", columns)
    weights = tiny.base(blocks=1, ffn=FFN)
    with pytest.raises(PlanError, match=rf"^blocks\.0\.\S+\.weight: {name}.* rotates 256 input columns at a time, but the weight "
                                        rf"is \d+x{columns}; (choose|keep|take|use) "):
        plan_recipe(wish(tmp_path, of(name), weights), tmp_path / "r")
    assert not (tmp_path / "out").exists()
    # but where a plan keeps these layers, the others are quantized
    narrow = [layer for layer in LAYERS if not layer.endswith("ffn.2")]
    found = made(tmp_path, of(name, layers=dict.fromkeys(narrow, "keep")), weights)
    assert kitchen.formats(found) == {"blocks.0.ffn.2": name}


@pytest.mark.parametrize(("name", "stored"), [("nvfp4", 104), ("mxfp8", 224), ("float8_e4m3fn", 200)])
def test_columns_are_padded_and_rows_refused_as_comfyui_would_miss_their_bias(tmp_path, name, stored):
    weights = tiny.base(blocks=1, ffn=200)         # neither a multiple of 16 nor of 32
    if name != "float8_e4m3fn":
        with pytest.raises(PlanError, match=rf"blocks\.0\.ffn\.0\.weight: {name} would store 2\d\d rows, .* 200, .*; choose "):
            made(tmp_path, of(name), weights)
    found, layer = made(tmp_path, of(name, layers={"blocks.0.ffn.0": "keep"}), weights), "blocks.0.ffn.2"
    weight = weights[f"{layer}.weight"].float()
    decoded = kitchen.decode(found, layer, tuple(weight.shape))
    assert found[f"{layer}.weight"].shape == (256, stored) and (decoded - weight).norm() < 0.1 * weight.norm()


def kept(found):
    return {key: tensor for key, tensor in found.items() if not key.startswith(tuple(LAYERS))}


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_kept_matrices_are_stored_as_asked_and_all_else_as_it_came(tmp_path, name, dtype):
    weights = tiny.base(blocks=1, ffn=FFN)
    weights["time_projection.1.weight"] = weights["time_projection.1.weight"].float()
    found = made(tmp_path, of("nvfp4", layers={LAYERS[2]: "keep"}, kept_dtype=name), weights)
    matrices = {"text_embedding.0.weight", "time_projection.1.weight", "head.head.weight"}
    for key, tensor in kept(found).items():
        assert tiny.same_bits(tensor, weights[key].to(dtype) if key in matrices else weights[key]), key
    assert tiny.same_bits(found[f"{LAYERS[2]}.weight"], weights[f"{LAYERS[2]}.weight"].to(dtype))
    assert tiny.same_bits(found[f"{LAYERS[0]}.bias"], weights[f"{LAYERS[0]}.bias"])


def test_a_map_narrows_f32_alone_and_not_what_it_keeps(tmp_path):
    weights = tiny.base(blocks=1, ffn=FFN)
    for key in ("text_embedding.0.weight", "time_projection.1.weight"):
        weights[key] = weights[key].float()
    output = of("nvfp4", layers={LAYERS[2]: "keep"}, kept_dtype="fp16", fp32_names=["time_projection.1.weight"])
    found = made(tmp_path, output, weights)
    assert found["time_projection.1.weight"].dtype == torch.float32 and found["text_embedding.0.weight"].dtype == torch.float16
    assert found[f"{LAYERS[2]}.weight"].dtype == torch.bfloat16  # it came so: a map says nothing of it


def test_without_a_wish_everything_that_is_kept_has_its_bits(tmp_path):
    weights = tiny.base(blocks=1, ffn=FFN)
    found = made(tmp_path, of("nvfp4", layers={LAYERS[2]: "keep"}), weights)
    assert all(tiny.same_bits(tensor, weights[key]) for key, tensor in kept(found).items())
    assert tiny.same_bits(found[f"{LAYERS[2]}.weight"], weights[f"{LAYERS[2]}.weight"])


def stopped(tmp_path, output, asks, **more):
    """Whether a run that is stopped when it asks for the n-th time was stopped."""
    asked = iter(range(asks))
    try:
        tiny.go(wish(tmp_path, output, **more), tmp_path / "r2", should_stop=lambda: next(asked, None) is None)
    except Stopped:
        return True
    return False


OPTIONS = [*({"format": name} for name in FORMATS), {"format": "int8_tensorwise", "int8_scaling": "tensor"},
           {"format": "int8_tensorwise", "int8_scaling": "row"},
           of("nvfp4", layers={layer: FORMATS[number % len(FORMATS)] for number, layer in enumerate(LAYERS)}, input_amax=AMAX,
              kept_dtype="fp16")]


@pytest.mark.parametrize("output", OPTIONS, ids=lambda output: "_".join([output["format"], *map(str, list(output)[1:])]))
def test_stops_in_the_middle_leave_no_trace_in_the_bytes(tmp_path, monkeypatch, output):
    monkeypatch.setattr(bands, "BAND_ELEMENTS", 128 * 256)  # several bands a tensor
    loras = [{"files": {"model": tiny.save(tmp_path / "l.safetensors", tiny.lora(layers=LAYERS, ffn=FFN))}}]
    tiny.go(wish(tmp_path, output, loras=loras), tmp_path / "r1")
    unbroken = tiny.files(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    assert sum(stopped(tmp_path, output, asks, loras=loras) for asks in (41, 23, 17)) >= 2
    assert any((tmp_path / "out").glob("*.part"))
    report = tiny.go(wish(tmp_path, output, loras=loras), tmp_path / "r2")
    assert report["experts"][0]["outputs"][0]["resumed"] > 20 and tiny.files(tmp_path / "out") == unbroken


def test_two_ways_to_scale_int8_and_two_formats_of_one_amax_share_a_job(tmp_path):
    model = {"model": tiny.save(tmp_path / "m.safetensors", tiny.base(blocks=1, ffn=FFN))}
    ways = ["tensor", "convrot", "row"]
    outputs = [*({"format": "int8_tensorwise", "int8_scaling": way, "suffix": way} for way in ways), "nvfp4", "float8_e4m3fn"]
    tiny.go(tiny.recipe(tmp_path / "out", model, formats=outputs), tmp_path / "r")
    for output in outputs:
        tiny.go(tiny.recipe(tmp_path / "apart", model, formats=[output]), tmp_path / "r2")
    assert len(tiny.files(tmp_path / "out")) == 5 and tiny.files(tmp_path / "apart") == tiny.files(tmp_path / "out")
