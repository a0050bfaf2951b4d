"""What `inspect` tells of files that are made here by the safetensors library and by the synthetic writer."""
import json

import gguf
import numpy as np
import pytest
import torch
from comfy_kitchen.tensor import TensorCoreFP8Layout
from safetensors.torch import load_file, save_file
from wan22_master.engine.bases.stated import Stated
from wan22_master.engine.errors import HeaderError, SourceError
from wan22_master.engine.inspection import inspect, lines
from wan22_master.engine.inspection.openers import of_gguf, of_model
from wan22_master.engine.synthetic import Sizes, model_shapes, write_lora, write_model

TINY = Sizes(dim=256, ffn=512, blocks=2, rank=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("inspect") / "wan_t2v_high_noise.safetensors"
    write_model(path, TINY)
    return path


def test_a_model_is_told_with_variant_role_dtypes_and_metadata(model):
    found = inspect(model)
    assert "T2V" in found["what"] and found["role"] == "high_noise" and found["lora"] is None and found["quantized"] == {}
    numbers = sum(torch.Size(shape).numel() for shape in model_shapes(TINY).values())
    assert found["dtypes"] == {"BF16": {"tensors": len(model_shapes(TINY)), "bytes": 2 * numbers}}
    assert found["bytes"] == model.stat().st_size and found["metadata"]["format"] == "pt"
    text = "\n".join(lines(found))
    assert "high_noise" in text and "BF16: " in text and "synthetic = random values" in text
    json.dumps(found)


def test_quantized_layers_are_counted_by_format(model, tmp_path):
    tensors = load_file(model)
    formats = {"blocks.0.self_attn.q": "float8_e4m3fn", "blocks.0.self_attn.k": "float8_e4m3fn", "blocks.1.ffn.0": "nvfp4"}
    for layer, name in formats.items():
        tensors[layer + ".weight"] = tensors[layer + ".weight"].to(torch.float8_e4m3fn)
        tensors[layer + ".weight_scale"] = torch.tensor(1.0)
        tensors[layer + ".comfy_quant"] = torch.tensor(list(json.dumps({"format": name}).encode()), dtype=torch.uint8)
    save_file(tensors, tmp_path / "q.safetensors")
    found = inspect(tmp_path / "q.safetensors")
    assert found["quantized"] == {"float8_e4m3fn": 2, "nvfp4": 1} and found["dtypes"]["F8_E4M3"]["tensors"] == 3
    assert "quantized: 2 layers float8_e4m3fn" in "\n".join(lines(found))


def test_an_entry_that_is_no_json_is_told_and_does_not_stop_the_rest(model, tmp_path):
    tensors = load_file(model)
    tensors["blocks.0.self_attn.q.comfy_quant"] = torch.full((9,), 255, dtype=torch.uint8)
    save_file(tensors, tmp_path / "q.safetensors", metadata={"_quantization_metadata": "{"})
    assert "unreadable" in inspect(tmp_path / "q.safetensors")["quantized"]


@pytest.mark.parametrize("dialect", ["native", "kohya"])
def test_a_lora_is_told_as_one_with_its_rank_and_what_it_is_for(tmp_path, dialect):
    path = tmp_path / "lightx2v_low_noise.safetensors"
    write_lora(path, TINY, dialect)
    found = inspect(path)
    assert found["lora"]["rank"] == "4" and "lightx2v" in found["lora"]["distillation"] and found["role"] == "low_noise"
    assert "what: LoRA, rank 4" in "\n".join(lines(found))


def test_damaged_and_missing_files_are_named(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(HeaderError, match=r"x\.safetensors"):
        inspect(tmp_path / "x.safetensors")
    with pytest.raises((SourceError, HeaderError), match="gone"):
        inspect(tmp_path / "gone.safetensors")


def entry(setting: dict) -> torch.Tensor:
    return torch.tensor(list(json.dumps(setting).encode()), dtype=torch.uint8)


def quantize(tensors: dict, layer: str, *, scale: float | None = None, full_precision: bool = False) -> None:
    """One layer as comfy-kitchen stores it in FP8; `tensors` is modified."""
    codes, params = TensorCoreFP8Layout.quantize(tensors[f"{layer}.weight"].float())
    tensors |= {f"{layer}.weight{suffix}": each for suffix, each in TensorCoreFP8Layout.state_dict_tensors(codes, params).items()}
    setting = {"format": "float8_e4m3fn"} | ({"full_precision_matrix_mult": True} if full_precision else {})
    tensors[f"{layer}.comfy_quant"] = entry(setting)
    tensors |= {f"{layer}.input_scale": torch.tensor([scale])} if scale else {}


def test_every_layer_is_told_with_format_product_and_input_scale(model, tmp_path):
    tensors = load_file(model)
    quantize(tensors, "blocks.0.self_attn.q", scale=0.25)
    quantize(tensors, "blocks.0.self_attn.k", scale=0.5)
    quantize(tensors, "blocks.1.ffn.0", scale=4.0)
    quantize(tensors, "blocks.1.ffn.2", full_precision=True)
    save_file(tensors, tmp_path / "q.safetensors")
    found = inspect(tmp_path / "q.safetensors")
    one = {"format": "float8_e4m3fn", "full_precision": False}
    assert found["layers"] == {
        "blocks.0.self_attn.q": one | {"input_scale": 0.25}, "blocks.0.self_attn.k": one | {"input_scale": 0.5},
        "blocks.1.ffn.0": one | {"input_scale": 4.0}, "blocks.1.ffn.2": one | {"full_precision": True, "input_scale": None}}
    assert found["input_scales"] == {"float8_e4m3fn": {"layers": 3, "min": 0.25, "median": 0.5, "max": 4.0}}
    assert found["problems"] == [] and found["opens_in"] == [
        {"program": "ComfyUI", "version": "0.3.76", "why": "float8_e4m3fn layers"}]
    kept = {key: each for key, each in load_file(model).items() if key.removesuffix(".weight") not in found["layers"]}
    assert found["kept"] == {"BF16": {"tensors": len(kept), "bytes": sum(each.nbytes for each in kept.values())}}
    text = "\n".join(lines(found))
    assert "4 layers float8_e4m3fn, 1 of them multiplied in 16 bit" in text and "opens in: ComfyUI newer than 0.3.76" in text
    json.dumps(found, allow_nan=False)


def test_plain_models_open_in_comfyui_and_diffusers_of_any_version(model):
    found = inspect(model)
    assert [each["program"] for each in found["opens_in"]] == ["ComfyUI", "diffusers"] and found["layers"] == {}
    assert {each["version"] for each in found["opens_in"]} == {None} and found["recipe"] is None


@pytest.mark.parametrize(("formats", "version"), [
    (["nvfp4", "float8_e4m3fn"], "0.7.0"), (["nvfp4", "mxfp8"], "0.17.0"), (["mxfp8", "int8_tensorwise"], "0.26.0"),
    (["convrot_w4a4", "float8_e5m2"], "0.27.0"), (["asym_w4a8_int8", "nvfp4"], "0.30.0"), ([], None),
])
def test_the_newest_format_decides_from_which_version_a_file_opens(formats, version):
    stated = Stated({}, {}, {f"blocks.{number}.ffn.0": {"format": name} for number, name in enumerate(formats)})
    assert of_model(stated, [], {"U8": 1}, 1)[0]["version"] == version


def test_smoothed_inputs_need_the_version_that_knows_them():
    stated = Stated({"blocks.0.ffn.0.pre_quant_scale": None}, {}, {"blocks.0.ffn.0": {"format": "nvfp4"}})
    assert of_model(stated, [], {"U8": 1}, 1) == [{"program": "ComfyUI", "version": "0.29.0", "why": "pre_quant_scale"}]


def test_a_fault_is_told_and_no_program_is_named(model, tmp_path):
    tensors = load_file(model)
    quantize(tensors, "blocks.0.self_attn.q")
    del tensors["blocks.0.self_attn.q.comfy_quant"]
    save_file(tensors, tmp_path / "q.safetensors")
    found = inspect(tmp_path / "q.safetensors")
    [problem] = found["problems"]
    assert problem["severity"] == "error" and problem["key"] == "blocks.0.self_attn.q.weight"
    assert [each["program"] for each in found["opens_in"]] == ["none"]
    assert "error: blocks.0.self_attn.q.weight: expected its layer to name its format" in "\n".join(lines(found))


def test_formats_of_other_packs_name_the_pack(model, tmp_path):
    tensors = load_file(model) | {"blocks.0.ffn.0.comfy_quant": entry({"format": "int8_blockwise"})}
    save_file(tensors, tmp_path / "q.safetensors")
    found = inspect(tmp_path / "q.safetensors")
    assert [each["program"] for each in found["opens_in"]] == ["ComfyUI with ComfyUI-QuantOps"]
    assert "T2V" in found["what"] and "not usable as a base" in found["what"]


def test_shards_open_nowhere_until_they_are_joined(model, tmp_path):
    tensors = load_file(model)
    half = len(tensors) // 2
    for number, keys in enumerate((list(tensors)[:half], list(tensors)[half:]), 1):
        save_file({key: tensors[key] for key in keys}, tmp_path / f"m-{number:05d}-of-00002.safetensors")
    found = inspect(tmp_path / "m-00001-of-00002.safetensors")
    assert found["files"] == 2 and found["opens_in"][0]["program"] == "none" and "join the shards" in found["opens_in"][0]["why"]


def test_a_recipe_inside_that_cannot_be_read_is_told(model, tmp_path):
    save_file(load_file(model), tmp_path / "q.safetensors", metadata={"wan22_master": "{}"})
    found = inspect(tmp_path / "q.safetensors")
    assert "expected a recipe" in found["recipe"]["unreadable"] and "recipe inside: unreadable" in "\n".join(lines(found))


def write_gguf(path, *, architecture: str = "wan", modulation=gguf.GGMLQuantizationType.F32):
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("general.name", "ours")
    types = gguf.GGMLQuantizationType
    for key, dtype in {"blocks.0.ffn.0.weight": types.Q4_0, "blocks.1.ffn.0.weight": types.Q8_0, "blocks.0.ffn.0.bias": types.F32,
                       "blocks.0.modulation": modulation}.items():
        values = np.ones((1, 6, 64) if "modulation" in key else (8, 64) if "weight" in key else (8,), dtype=np.float32)
        writer.add_tensor(key, gguf.quants.quantize(values, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_is_told_with_architecture_types_and_its_loader(tmp_path):
    found = inspect(write_gguf(tmp_path / "wan_low_noise.gguf"))
    assert found["what"] == "GGUF of architecture wan, 2 blocks" and found["role"] == "low_noise" and found["tensors"] == 4
    # ggml: a block of 32 is 18 bytes in Q4_0, 34 in Q8_0
    assert found["dtypes"] == {"F32": {"tensors": 2, "bytes": 4 * (8 + 6 * 64)}, "Q8_0": {"tensors": 1, "bytes": 8 * 2 * 34},
                               "Q4_0": {"tensors": 1, "bytes": 8 * 2 * 18}}
    assert found["quantized"] == {"Q4_0": 1, "Q8_0": 1} and found["metadata"]["general.name"] == "ours"
    assert found["layers"]["blocks.0.ffn.0"]["format"] == "Q4_0" and found["problems"] == []
    assert [each["program"] for each in found["opens_in"]] == ["ComfyUI with ComfyUI-GGUF"]
    assert "  opens in: ComfyUI with ComfyUI-GGUF (architecture wan)" in lines(found)
    json.dumps(found, allow_nan=False)


def test_a_gguf_that_the_loader_cannot_use_is_told(tmp_path):
    [problem] = inspect(write_gguf(tmp_path / "x.gguf", modulation=gguf.GGMLQuantizationType.BF16))["problems"]
    assert problem["key"] == "blocks.0.modulation" and problem["severity"] == "error"
    assert inspect(write_gguf(tmp_path / "y.gguf", architecture="llama"))["opens_in"][0]["program"] == "none"
    assert "TQ1_0 is decoded on the processor" in of_gguf("wan", {"TQ1_0": 1})[0]["why"]


@pytest.mark.parametrize("length", [4, 20, 200, -1])
def test_a_damaged_gguf_is_named(tmp_path, length):
    path = write_gguf(tmp_path / "x.gguf")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(HeaderError, match=r"x\.gguf"):
        inspect(path)


def test_the_recipe_inside_is_told_with_its_base_and_loras(model, tmp_path):
    recipe = {"version": 1, "title": "Mix", "title_version": "3", "date": "2026-11-21", "save": {}, "experts": {"high_noise": "b"},
              "outputs": [{"format": "bf16", "experts": ["high_noise"]}],
              "passes": [{"loras": [{"files": {"high_noise": "a.safetensors"}}]}]}
    told = {"recipe": recipe, "expert": "high_noise", "base": {"name": "b"}, "engine": "0.1.0", "merge": 2, "format": "bf16"}
    save_file(load_file(model), tmp_path / "q.safetensors", metadata={"wan22_master": json.dumps(told)})
    found = inspect(tmp_path / "q.safetensors")
    assert found["recipe"]["loras"] == 1 and found["recipe"]["recipe"]["experts"] == recipe["experts"]
    assert "  recipe inside: high_noise of b, 1 LoRA(s), as bf16, by version 0.1.0" in lines(found)
    json.dumps(found, allow_nan=False)
