"""The contract of a quantized file: what comfy-kitchen's layouts store is in order, and each kind of fault is found by its key.

That these are faults to ComfyUI too was tried with its own loader (comfy/ops.py, _load_quantized_module), fault by fault.
"""
import functools
import json

import pytest
import torch
from comfy_kitchen.tensor import (
    AsymW4A8Int8Layout,
    TensorCoreConvRotW4A4Layout,
    TensorCoreFP8Layout,
    TensorCoreMXFP8Layout,
    TensorCoreNVFP4Layout,
    TensorWiseINT8Layout,
)
from safetensors.torch import save_file
from wan22_master.engine.bases import stated
from wan22_master.engine.header import read_header
from wan22_master.engine.inspection import contract

DIM, FFN = 256, 336                                # 336 = 21 * 16: scales are padded, and mxfp8 pads the weight itself
LAYER, WIDE = "blocks.0.self_attn.q", "blocks.0.ffn.0"
WEIGHT, SCALE, ENTRY = f"{LAYER}.weight", f"{LAYER}.weight_scale", f"{LAYER}.comfy_quant"
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
LAYOUTS = {
    "float8_e4m3fn": (TensorCoreFP8Layout, {"dtype": E4M3}, {"full_precision_matrix_mult": True}),
    "float8_e5m2": (TensorCoreFP8Layout, {"dtype": E5M2}, {"full_precision_matrix_mult": True}),
    "nvfp4": (TensorCoreNVFP4Layout, {}, {}), "mxfp8": (TensorCoreMXFP8Layout, {}, {}),
    "int8_tensorwise": (TensorWiseINT8Layout, {}, {}),
    "int8_tensorwise, rows": (TensorWiseINT8Layout, {"per_channel": True}, {}),
    "int8_tensorwise, rotated": (TensorWiseINT8Layout, {"per_channel": True, "convrot": True},
                                 {"convrot": True, "convrot_groupsize": 256}),
    "convrot_w4a4": (TensorCoreConvRotW4A4Layout, {}, {"convrot_groupsize": 256}),
    "asym_w4a8_int8": (AsymW4A8Int8Layout, {}, {"group_size": 16, "convrot_groupsize": 256}),
}


def entry(setting: object) -> torch.Tensor:
    return torch.tensor(list(json.dumps(setting).encode()), dtype=torch.uint8)


def base() -> dict[str, torch.Tensor]:
    """What the rules look at of a Wan model."""
    shapes = {"self_attn.q": (DIM, DIM), "self_attn.norm_q": (DIM,), "ffn.0": (FFN, DIM), "ffn.2": (DIM, FFN)}
    found = {f"blocks.0.{name}.weight": torch.full(shape, 0.25).bfloat16() for name, shape in shapes.items()}
    found |= {f"blocks.0.{name}.bias": torch.zeros(shape[0]) for name, shape in shapes.items() if len(shape) == 2}
    return found | {"head.modulation": torch.zeros(1, 2, DIM), "blocks.0.modulation": torch.zeros(1, 6, DIM),
                    "patch_embedding.weight": torch.zeros(DIM, 16, 1, 2, 2)}


@functools.cache
def stored(name: str, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Suffix -> tensor of random weights, by comfy-kitchen's layout."""
    layout, options, _ = LAYOUTS[name]
    codes, params = layout.quantize(torch.randn(shape, generator=torch.Generator().manual_seed(0)), **options)
    return layout.state_dict_tensors(codes, params)


def store(name: str, layer: str = LAYER, **more) -> dict[str, torch.Tensor]:
    """A model with one layer as comfy-kitchen stores it."""
    tensors = base()
    parts = stored(name, tuple(tensors[f"{layer}.weight"].shape))
    tensors |= {f"{layer}.weight{suffix}": each for suffix, each in parts.items()}
    return tensors | {f"{layer}.comfy_quant": entry({"format": name.split(",")[0], **LAYOUTS[name][2], **more})}


@pytest.fixture
def check(tmp_path):
    """Saves tensors as a file and returns the problems found in it."""
    def run(tensors: dict, metadata: dict | None = None) -> list[contract.Problem]:
        said = {"_quantization_metadata": json.dumps({"layers": metadata})} if metadata is not None else None
        save_file({key: each.contiguous() for key, each in tensors.items()}, tmp_path / "x.safetensors", metadata=said)
        headers = [read_header(tmp_path / "x.safetensors")]
        with stated.fetching(headers) as fetch:
            return contract.check(headers, fetch)
    return run


def told(problems: list[contract.Problem]) -> set[tuple[str, str]]:
    return {(each.severity, each.key) for each in problems}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_comfy_kitchen_stores_is_in_order(check, name):
    assert check(store(name)) == []
    if name not in ("convrot_w4a4", "asym_w4a8_int8"):  # 336 columns cannot be rotated by 256
        assert check(store(name, WIDE)) == check(store(name, "blocks.0.ffn.2") if "rotated" not in name else base()) == []


@pytest.mark.parametrize("name", ["nvfp4", "mxfp8", "asym_w4a8_int8"])
def test_scales_may_be_stored_as_bytes(check, name):
    tensors = store(name)
    key = SCALE if name != "asym_w4a8_int8" else f"{WEIGHT}_s_rel"
    assert check(tensors | {key: tensors[key].view(torch.uint8)}) == []


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_missing_scale_is_an_error(check, name):
    for key in [key for key in store(name) if key.startswith(f"{WEIGHT}_") and not key.endswith("codebook")]:
        assert ("error", key) in told(check({other: each for other, each in store(name).items() if other != key}))


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_scale_of_another_shape_is_an_error(check, name):
    for key in [key for key in store(name) if key.startswith(f"{WEIGHT}_")]:
        tensors = store(name)
        tensors[key] = torch.zeros(3, 5).to(tensors[key].dtype)
        assert ("error", key) in told(check(tensors))


@pytest.mark.parametrize(("name", "suffix", "dtype", "severity"), [
    ("float8_e4m3fn", "_scale", torch.bfloat16, "warning"), ("nvfp4", "_scale_2", torch.bfloat16, "warning"),
    ("int8_tensorwise, rows", "_scale", torch.bfloat16, "warning"), ("convrot_w4a4", "_scale", torch.bfloat16, "warning"),
    ("asym_w4a8_int8", "_s_channel", torch.bfloat16, "error"), ("nvfp4", "_scale", torch.float32, "error"),
    ("mxfp8", "_scale", torch.float32, "error"), ("float8_e4m3fn", "_scale", torch.int32, "error"),
    ("nvfp4", "", torch.int8, "error"), ("int8_tensorwise", "", torch.uint8, "error"), ("mxfp8", "", torch.bfloat16, "error"),
    ("float8_e4m3fn", "", E5M2, "error"),
])
def test_a_tensor_of_another_dtype_is_told_with_both(check, name, suffix, dtype, severity):
    tensors = store(name)
    tensors[WEIGHT + suffix] = tensors[WEIGHT + suffix].float().to(dtype)
    found = [each for each in check(tensors) if each.key == WEIGHT + suffix]
    assert [each.severity for each in found] == [severity]
    assert contract.NAMES[dtype] in found[0].text


@pytest.mark.parametrize(("name", "cut"), [("nvfp4", (240, 128)), ("nvfp4", (256, 120)), ("mxfp8", (256, 224)),
                                           ("float8_e4m3fn", (256, 255)), ("convrot_w4a4", (255, 128))])
def test_a_weight_that_does_not_fit_bias_or_model_is_an_error(check, name, cut):
    tensors = store(name)
    tensors[WEIGHT] = tensors[WEIGHT][:cut[0], :cut[1]]
    assert ("error", WEIGHT) in told(check(tensors))


def test_padding_is_part_of_the_shape(check):
    tensors = base()
    tensors["blocks.0.ffn.0.weight"], tensors["blocks.0.ffn.0.bias"] = torch.ones(40, DIM), torch.zeros(40)
    codes, params = TensorCoreMXFP8Layout.quantize(tensors[f"{WIDE}.weight"])
    tensors |= {f"{WIDE}.weight": codes, f"{WIDE}.weight_scale": params.scale, f"{WIDE}.comfy_quant": entry({"format": "mxfp8"})}
    assert codes.shape[0] == 64 and check(tensors) == []


@pytest.mark.parametrize(("name", "key", "severity"), [
    ("int8_tensorwise", "input_scale", "warning"), ("float8_e4m3fn", "weight_scale_2", "warning"),
    ("float8_e4m3fn", "pre_quant_scale", "error"), ("asym_w4a8_int8", "weight_correction", "error"),
    ("mxfp8", "input_scale", "note"), ("nvfp4", "pre_quant_scale", "warning"),
])
def test_a_tensor_too_many_is_told(check, name, key, severity):
    assert told(check(store(name) | {f"{LAYER}.{key}": torch.ones(DIM) if key == "pre_quant_scale" else torch.tensor(1.0)})) == {
        (severity, f"{LAYER}.{key}")}


def test_smoothing_warns_of_later_loras(check):
    [found] = check(store("nvfp4") | {f"{LAYER}.pre_quant_scale": torch.ones(DIM)})
    assert "a LoRA applied later on this layer is wrong" in found.text


def test_fp8_inputs_without_scale_are_warned_of(check):
    tensors = store("float8_e4m3fn", full_precision_matrix_mult=False)
    assert told(check(tensors)) == {("warning", WEIGHT)}
    assert check(tensors | {f"{LAYER}.input_scale": torch.tensor([0.1])}) == []


@pytest.mark.parametrize(("value", "severity"), [
    (torch.tensor(0.0), "error"), (torch.tensor(float("nan")), "error"), (torch.tensor(-1.0), "error"),
    (torch.ones(3), "error"), (torch.tensor(0.5).bfloat16(), "warning"),
])
def test_an_input_scale_is_one_number_above_0_in_32_bit(check, value, severity):
    assert told(check(store("nvfp4") | {f"{LAYER}.input_scale": value})) == {(severity, f"{LAYER}.input_scale")}


def test_a_scale_that_is_no_number_is_an_error(check):
    assert ("error", SCALE) in told(check(store("float8_e4m3fn") | {SCALE: torch.tensor(float("nan"))}))


def test_one_int8_scale_per_row_needs_its_second_axis(check):
    tensors = store("int8_tensorwise, rows")
    [found] = check(tensors | {SCALE: tensors[SCALE].flatten()})
    assert found.severity == "warning" and "a LoRA scales the columns" in found.text


@pytest.mark.parametrize(("name", "settings", "said"), [
    ("int8_tensorwise, rotated", {"convrot_groupsize": 100}, "a power of 4 that divides 256 columns, found 100"),
    ("convrot_w4a4", {"convrot_groupsize": 128}, "found 128"), ("convrot_w4a4", {"linear_dtype": "x"}, "int4 or int8, found 'x'"),
    ("asym_w4a8_int8", {"group_size": 96}, "divides 256 columns, found 96"),
    ("asym_w4a8_int8", {"params": {"group_size": 16}, "group_size": "x"}, "found 'x'"),
    ("nvfp4", {"full_precision_matrix_mult": "false"}, "found 'false', taken as True"),
])
def test_a_wrong_setting_is_told_with_its_value(check, name, settings, said):
    assert any(said in each.text and each.key == ENTRY for each in check(store(name, **settings)))


def test_settings_may_stand_under_params(check):
    tensors = store("asym_w4a8_int8")
    params = {"group_size": 16, "convrot_groupsize": "256"}     # ComfyUI takes int() of both
    assert check(tensors | {ENTRY: entry({"format": "asym_w4a8_int8", "params": params})}) == []


@pytest.mark.parametrize(("name", "way_out"), [
    ("float8_e4m3fn_rowwise", "ComfyUI-QuantOps loads it"), ("int8_blockwise", "ComfyUI-QuantOps loads it"),
    ("hybrid_mxfp8", "ComfyUI-QuantOps loads it"), ("svdquant_w4a4", "no released ComfyUI loads it"),
    ("awq_w4a16", "no released ComfyUI loads it"), ("nvfp8", "expected one of float8_e4m3fn"),
])
def test_a_format_that_plain_comfyui_does_not_know_names_what_does(check, name, way_out):
    [found] = check(store("nvfp4") | {ENTRY: entry({"format": name})})
    assert (found.severity, found.key) == ("error", ENTRY) and way_out in found.text


@pytest.mark.parametrize(("body", "severity"), [
    (torch.full((9,), 255, dtype=torch.uint8), "error"), (entry([1]), "error"), (entry({}), "error"),
    (entry({"format": 4}), "error"), (torch.zeros(5000, dtype=torch.uint8), "error"),
    (entry({"format": "nvfp4"})[None], "warning"), (entry({"format": "nvfp4"}).int(), "warning"),
])
def test_an_entry_is_the_bytes_of_a_json_object(check, body, severity):
    assert told(check(store("nvfp4") | {ENTRY: body})) == {(severity, ENTRY)}


@pytest.mark.parametrize("layer", ["patch_embedding", "blocks.0.self_attn.norm_q"])
def test_what_is_no_linear_layer_is_never_quantized(check, layer):
    tensors = store("nvfp4")
    tensors[f"{layer}.weight"] = tensors[f"{layer}.weight"].to(E4M3)
    tensors |= {f"{layer}.weight_scale": torch.tensor(1.0), f"{layer}.comfy_quant": entry({"format": "float8_e4m3fn"})}
    assert told(check(tensors)) == {("error", f"{layer}.weight")}


def test_a_parameter_with_an_entry_is_an_error(check):
    assert told(check(store("nvfp4") | {"blocks.0.modulation.comfy_quant": entry({"format": "nvfp4"})})) == {
        ("error", "blocks.0.modulation.comfy_quant")}


@pytest.mark.parametrize("name", ["float8_e4m3fn", "nvfp4", "int8_tensorwise"])
def test_codes_of_a_layer_that_names_no_format_are_an_error(check, name):
    assert told(check({key: each for key, each in store(name).items() if key != ENTRY})) == {("error", WEIGHT)}


def test_fp8_weights_without_scale_are_allowed_and_said(check):
    [found] = check(base() | {WEIGHT: torch.ones(DIM, DIM).to(E4M3)})
    assert found.severity == "note" and "1 FP8 weight(s) without a scale: cast" in found.text


def test_the_header_names_layers_without_prefix(check):
    said, prefix = {"format": "nvfp4"}, "model.diffusion_model."
    bare = {key: each for key, each in store("nvfp4").items() if key != ENTRY}
    longer = {prefix + key: each for key, each in bare.items()}
    assert check(bare, {LAYER: said}) == check(longer, {LAYER: said}) == []
    assert told(check(longer, {prefix + LAYER: said})) == {("warning", "")}
    assert told(check(bare, {prefix + LAYER: said})) == {("error", "")}
    assert told(check(bare, {LAYER: said, "blocks.9.ffn.0": said})) == {("warning", "blocks.9.ffn.0")}


def test_the_header_wins_over_an_entry_and_a_contradiction_is_told(check):
    assert check(store("nvfp4"), {LAYER: {"format": "nvfp4"}}) == []
    assert told(check(store("nvfp4"), {LAYER: {"format": "nvfp4", "full_precision_matrix_mult": True}})) == {("warning", ENTRY)}
    for entry_of_another in (entry({"format": "x"}), torch.full((9,), 255, dtype=torch.uint8)):
        assert told(check(store("nvfp4") | {ENTRY: entry_of_another}, {LAYER: {"format": "nvfp4"}})) == {("warning", ENTRY)}
    assert ("error", "_quantization_metadata") in told(check(store("nvfp4"), 7))


@pytest.mark.parametrize(("count", "dtype", "expected"), [
    (2, E4M3, {("note", "scaled_fp8")}), (0, E4M3, {("note", "scaled_fp8"), ("warning", WEIGHT)}),
    (2, E5M2, {("note", "scaled_fp8"), ("error", WEIGHT)}),
])
def test_scaled_fp8_of_the_older_kind_is_understood(check, count, dtype, expected):
    older = {WEIGHT: torch.ones(DIM, DIM).to(dtype), f"{LAYER}.scale_weight": torch.tensor([1.0]),
             f"{LAYER}.scale_input": torch.tensor([1.0]), "scaled_fp8": torch.zeros(count, dtype=dtype)}
    assert told(check(base() | older)) == expected
    del older["scaled_fp8"]
    assert told(check(base() | older)) == {("error", WEIGHT)}


def test_problems_of_one_kind_are_one_line():
    problems = [contract.Problem(f"blocks.{number}.ffn.0.weight", "expected this", "error") for number in range(40)]
    assert contract.grouped(problems) == ["error: blocks.0.ffn.0.weight: expected this (and 39 more)"]
