"""Opening a base: native names whatever the file calls them, and what is no base is refused by name."""
import json

import pytest
import torch
from wan22_master.engine.bases.names import to_diffusers
from wan22_master.engine.bases.source import open_source
from wan22_master.engine.errors import HeaderError, SourceError
from wan22_master.tests.engine.stored_base import saved, wan


@pytest.mark.parametrize("prefix", ["model.", "model.diffusion_model.", "diffusion_model."])
@pytest.mark.parametrize("rename", [str, to_diffusers], ids=["native", "diffusers"])
def test_keys_are_native_and_bare_whatever_the_file_calls_them(tmp_path, prefix, rename):
    tensors = wan()
    path = saved(tmp_path / "base.safetensors", {prefix + rename(key): value for key, value in tensors.items()})
    with open_source(path) as source:
        assert set(source.keys()) == set(tensors)
        assert all(torch.equal(source.read(key), value) for key, value in tensors.items())


def test_what_an_all_in_one_file_holds_besides_is_left_out_and_counted(tmp_path):
    tensors = {f"model.diffusion_model.{key}": value for key, value in wan().items()}
    tensors |= {f"vae.decoder.{number}": torch.zeros(1) for number in range(3)}
    tensors |= {f"text_encoders.umt5xxl.transformer.{number}": torch.zeros(1) for number in range(5)} | {"alphas": torch.zeros(1)}
    with open_source(saved(tmp_path / "aio.safetensors", tensors)) as source:
        assert set(source.keys()) == set(wan())
        assert source.left_out == {"vae": 3, "text encoder": 5, "other": 1}


def test_keys_come_in_file_order(tmp_path):
    path = saved(tmp_path / "base.safetensors", wan())
    raw = path.read_bytes()
    header = json.loads(raw[8:8 + int.from_bytes(raw[:8], "little")])
    wanted = sorted((key for key in header if key != "__metadata__"), key=lambda key: header[key]["data_offsets"])
    with open_source(path) as source:
        assert source.keys() == wanted


def test_identity_is_json_and_changes_with_time_and_header(tmp_path):
    path = saved(tmp_path / "base.safetensors", wan(), {"a": "b"})
    with open_source(path) as source:
        before = json.loads(json.dumps(source.identity()))
        assert source.metadata == {"a": "b"}
    assert [sorted(file) for file in before["files"]] == [["header_sha256", "mtime_ns", "name", "size"]]
    assert before["files"][0]["name"] == "base.safetensors"
    saved(path, wan(), {"a": "c"})
    with open_source(path) as source:
        assert source.identity()["files"][0]["header_sha256"] != before["files"][0]["header_sha256"]


@pytest.mark.parametrize(("keys", "what"), [
    (["encoder.block.0.layer.0.SelfAttention.k.weight", "shared.weight"], "T5 text encoder.*models/text_encoders"),
    (["decoder.middle.0.residual.0.gamma", "conv1.weight"], "a VAE.*models/vae"),
    (["vision_model.encoder.layers.0.layer_norm1.weight"], "CLIP.*models/clip_vision"),
    (["diffusion_model.blocks.0.self_attn.q.lora_A.weight"], "a LoRA.*models/loras"),
    (["lora_unet_blocks_0_ffn_0.lora_down.weight"], "a LoRA"), (["diffusion_model.blocks.0.norm3.diff_b"], "a LoRA"),
    (["model.diffusion_model.double_blocks.0.img_attn.qkv.weight"], "another family"),
    (["model.layers.0.self_attn.q_proj.weight"], "language model"), (["x", "y"], r"2 tensors without head\.modulation \(x, y\)"),
])
def test_a_file_that_is_no_base_is_named_and_sent_where_it_belongs(tmp_path, keys, what):
    with pytest.raises(SourceError, match=what):
        open_source(saved(tmp_path / "file.safetensors", {key: torch.zeros(2) for key in keys}))


def test_one_tensor_under_two_names_is_refused(tmp_path):
    tensors = {to_diffusers(key): value for key, value in wan().items()} | {"blocks.0.self_attn.q.weight": torch.zeros(2)}
    with pytest.raises(SourceError, match="found also as"):
        open_source(saved(tmp_path / "base.safetensors", tensors))


def test_a_file_that_is_missing_or_no_safetensors_is_refused(tmp_path):
    with pytest.raises(HeaderError, match="cannot be read"):
        open_source(tmp_path / "none.safetensors")
    (tmp_path / "model.ckpt").write_bytes(bytes(100))
    with pytest.raises(SourceError, match=r"expected a \.safetensors file"):
        open_source(tmp_path / "model.ckpt")
