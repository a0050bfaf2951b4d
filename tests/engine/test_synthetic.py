"""Synthetic models and LoRAs: real structure by the format's own reader, values as said, same bytes for the same seed."""
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from wan22_master.engine import random_file, synthetic
from wan22_master.engine.errors import PlanError
from wan22_master.engine.specs import TensorSpec
from wan22_master.engine.synthetic import Sizes, lora_specs, model_shapes, write_lora, write_model, write_set

TINY = Sizes(dim=256, ffn=512, blocks=2, rank=4)
REAL = Sizes(dim=5120, ffn=13824, blocks=40, rank=64)


def file_hash(path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.mark.parametrize(("kind", "count", "numbers"), [("t2v", 1095, 14_288_491_584), ("i2v", 1095, 14_288_901_184)])
def test_the_real_size_has_the_tensors_and_numbers_of_the_published_experts(kind, count, numbers):
    # Wan2.2-T2V-A14B and -I2V-A14B on huggingface.co: 1095 tensors each, 28.6 GB in bf16
    shapes = model_shapes(Sizes(5120, 13824, 40, kind=kind))
    assert len(shapes) == count and sum(TensorSpec(shape, torch.bfloat16).numel for shape in shapes.values()) == numbers


@pytest.mark.parametrize("dtype", synthetic.DTYPES)
def test_a_model_reads_back_by_safetensors_with_every_planned_tensor(tmp_path, dtype):
    sizes = Sizes(dim=256, ffn=512, blocks=2, dtype=dtype)
    size = write_model(tmp_path / "m.safetensors", sizes)
    tensors = load_file(tmp_path / "m.safetensors")
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == model_shapes(sizes)
    assert {tensor.dtype for tensor in tensors.values()} == {synthetic.DTYPES[dtype]}
    assert size == (tmp_path / "m.safetensors").stat().st_size and not list(tmp_path.glob("*.new"))
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "synthetic": "random values, seed 0"}
        assert list(file.offset_keys()) == list(model_shapes(sizes))


def test_values_have_the_mean_and_spread_that_is_said(tmp_path):
    write_model(tmp_path / "m", TINY)
    tensors = load_file(tmp_path / "m")
    stds = {"blocks.1.self_attn.q": 0.04, "blocks.0.cross_attn.o": 0.03, "blocks.0.ffn.2": 0.025, "text_embedding.0": 0.05}
    for layer, std in stds.items():
        values = tensors[layer + ".weight"].float()
        assert values.std().item() == pytest.approx(std, rel=0.02) and abs(values.mean().item()) < std / 50  # 65,536 values: 0.3 %
    norm = tensors["blocks.0.self_attn.norm_q.weight"].float()
    assert abs(norm.mean().item() - 1) < 0.05 and 0.05 < norm.std().item() < 0.15
    assert all(torch.isfinite(tensor.float()).all() for tensor in tensors.values())


def test_no_two_weights_and_no_two_rows_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(random_file, "POOL", 10_001)  # shorter than a tensor, so that it is gone through several times
    write_model(tmp_path / "m", TINY)
    tensors = load_file(tmp_path / "m")
    weights = [tensor for key, tensor in tensors.items() if tensor.shape == (256, 256)]
    assert len({tensor.view(torch.uint8).numpy().tobytes() for tensor in weights}) == len(weights) > 10
    assert len(torch.unique(weights[0].float(), dim=0)) == 256


def test_same_seed_same_bytes_other_seed_or_role_other_bytes(tmp_path):
    first, again, other = (write_set(tmp_path / name, TINY, seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    for group in ("experts", "native_lora", "kohya_lora"):
        files = [getattr(each, group) for each in (first, again, other)]
        for role in ("high_noise", "low_noise"):
            assert file_hash(files[0][role]) == file_hash(files[1][role]) != file_hash(files[2][role])
        assert file_hash(files[0]["high_noise"]) != file_hash(files[0]["low_noise"])
        assert all(role in Path(path).name for role, path in files[0].items())


@pytest.mark.parametrize(("dialect", "pattern", "alpha", "alpha_dtype"), [
    ("native", r"diffusion_model\.blocks\.[01]\.(self_attn|cross_attn|ffn)\.[qkvo02]\.(lora_A\.weight|lora_B\.weight|alpha)", 4,
        torch.int64),
    ("kohya", r"lora_unet_blocks_[01]_(self_attn|cross_attn|ffn)_[qkvo02]\.(lora_down\.weight|lora_up\.weight|alpha)", 2,
        torch.bfloat16),
])
def test_a_lora_has_its_dialects_names_and_alpha_and_a_delta_of_the_said_size(tmp_path, dialect, pattern, alpha, alpha_dtype):
    write_lora(tmp_path / "l", TINY, dialect)
    tensors = load_file(tmp_path / "l")
    assert len(tensors) == 2 * 10 * 3 and all(re.fullmatch(pattern, key) for key in tensors)
    layers = {key.removesuffix(".alpha") for key in tensors if key.endswith(".alpha")}
    down, up = (".lora_A.weight", ".lora_B.weight") if dialect == "native" else (".lora_down.weight", ".lora_up.weight")
    for layer in layers:
        found = tensors[layer + ".alpha"]
        assert found.dtype == alpha_dtype and found.shape == () and found.item() == alpha
        delta = alpha / 4 * tensors[layer + up].double() @ tensors[layer + down].double()
        assert delta.square().mean().sqrt().item() == pytest.approx(4e-4, rel=0.15)  # rank 4: four products an element


@pytest.mark.parametrize("dialect", ["native", "kohya"])
def test_the_factors_of_a_lora_fit_the_weights_of_the_real_size(dialect):
    shapes, specs = model_shapes(REAL), lora_specs(REAL, dialect)
    prefix, down, up = ("diffusion_model.", "lora_A", "lora_B") if dialect == "native" else ("lora_unet_", "lora_down", "lora_up")
    fitting = 0
    for key in shapes:
        layer = key.removesuffix(".weight")
        stem = prefix + (layer if dialect == "native" else layer.replace(".", "_"))
        if f"{stem}.alpha" in specs:
            rows, columns = specs[f"{stem}.{up}.weight"].shape[0], specs[f"{stem}.{down}.weight"].shape[1]
            assert (rows, columns) == shapes[key] and specs[f"{stem}.{down}.weight"].shape[0] == 64
            fitting += 1
    assert fitting == 400 == len(specs) / 3


@pytest.mark.parametrize("wrong", [{"dim": 200}, {"dim": 0}, {"kind": "s2v"}, {"dtype": "fp8"}])
def test_sizes_that_comfyui_would_not_detect_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        Sizes(**wrong)


def test_a_disk_without_room_is_found_before_the_first_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(random_file, "free_bytes", lambda path: 1000)
    with pytest.raises(PlanError, match=r"m: expected 0\.0 GB free"):
        write_model(tmp_path / "m", TINY)
    assert not list(tmp_path.iterdir())


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 50), st.integers(0, 400), st.text(max_size=5))
def test_pieces_go_round_the_pool_and_have_the_asked_length(longest, count, key):
    pools = random_file.Pools("s", torch.float32, longest)
    pool = torch.frombuffer(pools._pool(1.0), dtype=torch.float32)
    found = torch.frombuffer(bytearray(b"".join(pools.pieces(key, count, 1.0)) or b"\0\0\0\0"), dtype=torch.float32)[:count]
    start = random_file.seed_of("s", key) % pools.size
    assert torch.equal(found, pool[(torch.arange(count) + start) % len(pool)])


@pytest.mark.comfyui
@pytest.mark.slow
def test_comfyui_detects_both_kinds(tmp_path, comfyui_path):
    for kind in synthetic.CHANNELS:
        write_model(tmp_path / kind, Sizes(dim=256, ffn=512, blocks=2, kind=kind))
    python = next(path for path in (comfyui_path / ".venv" / "bin" / "python", Path(sys.executable)) if path.exists())
    script = ("import json, sys; sys.argv = ['x', '--cpu']; import comfy.options; comfy.options.enable_args_parsing()\n"
              "import comfy.model_detection, safetensors.torch\n"
              f"for kind in {list(synthetic.CHANNELS)}:\n"
              f"    tensors = safetensors.torch.load_file({str(tmp_path)!r} + '/' + kind)\n"
              "    found = comfy.model_detection.model_config_from_unet(tensors, '')\n"
              "    print(json.dumps([type(found).__name__, {k: v for k, v in found.unet_config.items() if type(v) is int}]))")
    done = subprocess.run([python, "-c", script], cwd=comfyui_path, capture_output=True, text=True, check=False)
    for kind, line in zip(synthetic.CHANNELS, done.stdout.strip().splitlines()[-2:], strict=True):
        name, config = json.loads(line)
        assert name == "WAN21_T2V", done.stderr  # also for Wan 2.2 I2V, which has no img_emb; in_dim tells it apart
        found = (config["dim"], config["ffn_dim"], config["num_layers"], config["in_dim"])
        assert found == (256, 512, 2, synthetic.CHANNELS[kind][0])
