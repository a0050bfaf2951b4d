"""Input scales from a summary, from another file and from one number, on the layers they belong to."""
import json

import pytest
import torch
from comfy_kitchen.tensor import TensorCoreFP8Layout, TensorCoreNVFP4Layout
from safetensors.torch import save_file
from wan22_master.engine.errors import RecipeError, SourceError
from wan22_master.engine.plans.input_scales import constant, from_file, given, same_input

LAYERS = [f"blocks.{number}.{name}" for number in range(3) for name in (
    "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "cross_attn.q", "cross_attn.k", "cross_attn.v", "ffn.0", "ffn.2")]


def entry(setting: dict) -> torch.Tensor:
    return torch.tensor(list(json.dumps(setting).encode()), dtype=torch.uint8)


def write(path, scales: dict[str, tuple[str | None, torch.Tensor]], metadata=None):
    """A file of layers, each with the format it names (None: none) and its input scale."""
    tensors = {}
    for layer, (form, scale) in scales.items():
        layout = TensorCoreNVFP4Layout if form == "nvfp4" else TensorCoreFP8Layout
        codes, params = layout.quantize(torch.ones(32, 64))
        tensors |= {f"{layer}.weight{suffix}": each for suffix, each in layout.state_dict_tensors(codes, params).items()}
        tensors[f"{layer}.input_scale"] = scale
        tensors |= {f"{layer}.comfy_quant": entry({"format": form})} if form else {}
    save_file(tensors, path, metadata=metadata)
    return path


def test_one_number_serves_every_layer_and_has_to_be_one():
    assert constant(24, LAYERS).amax == dict.fromkeys(LAYERS, 24.0)
    for wrong in (0, -1.0, float("nan"), float("inf"), True, "24"):
        with pytest.raises(RecipeError, match="finite number above 0"):
            constant(wrong, LAYERS)


def test_scales_of_another_file_become_amax_by_that_files_format(tmp_path):
    path = write(tmp_path / "x.safetensors", {
        "blocks.0.ffn.0": ("nvfp4", torch.tensor([0.25])), "blocks.0.ffn.2": ("float8_e4m3fn", torch.tensor(0.25)),
        "blocks.1.ffn.0": ("float8_e5m2", torch.tensor(0.25)), "blocks.1.ffn.2": ("mxfp8", torch.tensor(0.25))})
    scales = from_file(path, LAYERS)
    # finfo: the largest numbers of the formats; 6 is E2M1's, and an nvfp4 block scale is an e4m3
    e4m3, e5m2 = (torch.finfo(dtype).max for dtype in (torch.float8_e4m3fn, torch.float8_e5m2))
    assert scales.amax == {"blocks.0.ffn.0": 0.25 * e4m3 * 6, "blocks.0.ffn.2": 0.25 * e4m3, "blocks.1.ffn.0": 0.25 * e5m2}
    assert any("1 input scales of mxfp8 are left out" in each for each in scales.notices)


def test_formats_in_the_header_serve_as_well_and_prefixes_are_taken_off(tmp_path):
    layers = {"blocks.0.ffn.0": {"format": "float8_e4m3fn"}}
    path = write(tmp_path / "x.safetensors", {"blocks.0.ffn.0": (None, torch.tensor(0.5))},
                 {"_quantization_metadata": json.dumps({"layers": layers})})
    assert from_file(path, LAYERS).amax == {"blocks.0.ffn.0": 224.0}
    tensors = {"model.diffusion_model.head.modulation": torch.zeros(1, 2, 8),
               "model.diffusion_model.blocks.0.ffn.0.weight": torch.zeros(8, 8).to(torch.float8_e4m3fn),
               "model.diffusion_model.blocks.0.ffn.0.input_scale": torch.tensor(0.5),
               "model.diffusion_model.blocks.0.ffn.0.comfy_quant": entry({"format": "float8_e4m3fn"})}
    save_file(tensors, tmp_path / "y.safetensors")
    assert from_file(tmp_path / "y.safetensors", LAYERS).amax == {"blocks.0.ffn.0": 224.0}


@pytest.mark.parametrize(("form", "scale", "found"), [
    ("nvfp4", torch.tensor(float("nan")), "found nan"), ("nvfp4", torch.tensor(0.0), "found 0.0"),
    ("nvfp4", torch.tensor(-1.0), "found -1.0"), ("nvfp4", torch.tensor([1.0, 2.0]), "found another tensor"),
    (None, torch.tensor(1.0), "name its format, found none"), ("mxfp8", torch.tensor(1.0), "in nvfp4, float8_e4m3fn"),
])
def test_a_file_with_a_scale_that_is_none_is_refused_by_key(tmp_path, form, scale, found):
    path = write(tmp_path / "x.safetensors", {"blocks.0.ffn.0": (form, scale)})
    with pytest.raises(SourceError, match=rf"x\.safetensors: .*{found}"):
        from_file(path, LAYERS)


def test_layers_with_the_same_input_share_it():
    scales = given({"blocks.1.self_attn.q": 3.0, "blocks.1.cross_attn.k": 1.0, "blocks.1.cross_attn.q": 9.0}, LAYERS, "it")
    assert scales.amax == {
        "blocks.1.self_attn.q": 3.0, "blocks.1.self_attn.k": 3.0, "blocks.1.self_attn.v": 3.0, "blocks.1.cross_attn.q": 9.0,
        **{f"blocks.{number}.cross_attn.{part}": 1.0 for number in range(3) for part in "kv"}}
    assert "7 layers take the input scale of a layer with the same input: cross_attn.k (2), cross_attn.v (3), self_attn.k (1), " \
           "self_attn.v (1)" in scales.notices
    assert any(each.startswith("17 layers have no input scale") and "ffn.2 (3)" in each for each in scales.notices)
    assert list(scales.amax) == [layer for layer in LAYERS if layer in scales.amax]


def test_sharing_takes_the_largest_and_can_be_turned_off():
    amax = {"blocks.0.cross_attn.k": 2.0, "blocks.1.cross_attn.k": 1.0}
    assert given(amax, LAYERS, "it").amax["blocks.2.cross_attn.v"] == 2.0
    assert given(amax, LAYERS, "it", share=False).amax == amax


def test_only_attention_inputs_are_shared():
    assert same_input("blocks.3.self_attn.v") == same_input("blocks.3.self_attn.q") != same_input("blocks.4.self_attn.q")
    assert same_input("blocks.3.cross_attn.v") == same_input("vace_blocks.4.cross_attn.k") == "text"
    assert same_input("blocks.3.cross_attn.k_img") == same_input("blocks.4.cross_attn.v_img") == "image"
    assert [same_input(layer) for layer in ("blocks.3.ffn.0", "blocks.3.ffn.2", "blocks.3.cross_attn.q", "head.head")] == [None] * 4


def test_layers_of_another_model_are_counted_and_nothing_in_common_is_refused():
    scales = given({"blocks.0.ffn.0": 1.0, "blocks.38.ffn.0": 1.0, "blocks.39.ffn.0": 1.0}, LAYERS, "the file")
    assert "2 layers of the file have no place here: blocks.38.ffn.0, blocks.39.ffn.0" in scales.notices
    assert not any("outside the blocks" in each for each in scales.notices)
    with pytest.raises(RecipeError, match=r"expected layers of this model, as blocks\.0\.self_attn\.q, found blocks\.38\.ffn\.0"):
        given({"blocks.38.ffn.0": 1.0}, LAYERS, "the file")


def test_layers_outside_the_blocks_are_no_fault_and_need_no_scale():
    outside = ("head.head", "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_projection.1", "img_emb.proj.1",
               "patch_embedding")
    told = given(dict.fromkeys((*outside, "blocks.0.ffn.0"), 1.0), LAYERS, "it").notices
    assert "7 layers of it are outside the blocks: never quantized, they need no scale" in told
    assert not any("have no place here" in each for each in told)
    assert "1 layers of it have no place here: header.0" in given({"header.0": 1.0, "blocks.0.ffn.0": 1.0}, LAYERS, "it").notices
