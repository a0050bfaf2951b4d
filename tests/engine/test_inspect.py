"""What `inspect` tells of files that are made here by the safetensors library and by the synthetic writer."""
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan22_master.engine.errors import HeaderError, SourceError
from wan22_master.engine.inspect import inspect, lines
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
