"""One LoRA file: reading against what safetensors wrote, and what its name tells."""
import pytest
import torch
from safetensors.torch import save_file
from wan22_master.engine.errors import LoraError
from wan22_master.engine.loras.lora import open_lora

Q = "diffusion_model.blocks.0.self_attn.q"


def saved(path, tensors, metadata=None):
    save_file(tensors, path, metadata)
    return open_lora(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.float8_e4m3fn])
def test_tensors_and_rows_are_read_as_float32(tmp_path, dtype):
    tensor = (torch.randn(10, 6, generator=torch.manual_seed(1)) * 4).to(dtype)
    with saved(tmp_path / "a.safetensors", {f"{Q}.lora_B.weight": tensor, f"{Q}.lora_A.weight": torch.ones(6, 3)}) as lora:
        whole, rows = lora.read(f"{Q}.lora_B.weight"), lora.read(f"{Q}.lora_B.weight", (3, 7))
    assert whole.dtype == rows.dtype == torch.float32
    assert torch.equal(whole, tensor.to(torch.float32))
    assert torch.equal(rows, tensor.to(torch.float32)[3:7])


def test_scalars_and_empty_tensors_are_read(tmp_path):
    tensors = {f"{Q}.alpha": torch.tensor(8), f"{Q}.lora_B.weight": torch.empty(4, 0), f"{Q}.lora_A.weight": torch.empty(0, 4)}
    with saved(tmp_path / "a.safetensors", tensors) as lora:
        assert lora.read(f"{Q}.alpha").item() == 8
        assert lora.read(f"{Q}.lora_B.weight").shape == (4, 0)


def test_the_rank_is_summed_up_from_the_header(tmp_path):
    one = {f"{Q}.lora_A.weight": torch.ones(16, 8), f"{Q}.lora_B.weight": torch.ones(8, 16)}
    other = "lora_unet_blocks_0_ffn_0"
    two = one | {f"{other}.lora_down.weight": torch.ones(4, 8), f"{other}.lora_up.weight": torch.ones(8, 4)}
    assert saved(tmp_path / "one.safetensors", one).rank == "16"
    assert saved(tmp_path / "two.safetensors", two).rank == "4 to 16"
    named = {f"{Q}.lora_A.default.weight": torch.ones(8, 8), f"{Q}.lora_B.default.weight": torch.ones(8, 8)}
    assert saved(tmp_path / "named.safetensors", named).rank == "8"
    assert saved(tmp_path / "none.safetensors", {f"{Q}.diff_b": torch.ones(8)}).rank == "none"


def test_a_file_without_lora_keys_is_refused(tmp_path):
    with pytest.raises(LoraError, match=r"base\.safetensors: expected a LoRA .* found blocks\.0\.ffn\.0\.weight"):
        saved(tmp_path / "base.safetensors", {"blocks.0.ffn.0.weight": torch.ones(2, 2)})


# File names as published by lightx2v, Kijai, tianweiy and vrgamedevgirl; folders as in Wan2.2-Lightning.
@pytest.mark.parametrize("name", [
    "Wan2.2-Lightning_T2V-A14B-4steps-lora_HIGH_fp16", "Wan21_T2V_14B_lightx2v_cfg_step_distill_lora_rank32",
    "wan2.2_i2v_lightx2v_4steps_lora_v1_low_noise", "Wan21_CausVid_14B_T2V_lora_rank32", "Wan21_AccVid_T2V_14B_lora_rank32_fp16",
    "Wan2.1_T2V_14B_FusionX_LoRA", "Wan_2_2_I2V_A14B_HIGH_lightx2v_4step_lora_v1030_rank_64_bf16", "TurboWan_high", "wan_dmd2",
])
def test_distillation_is_known_by_the_file_name(tmp_path, name):
    assert saved(tmp_path / f"{name}.safetensors", {f"{Q}.diff": torch.ones(2)}).is_distillation.startswith("file name says")


@pytest.mark.parametrize("name", ["slow_motion", "highlightning_bolts", "turbocharged", "14steps", "admdx", "accvidual"])
def test_a_word_inside_another_is_no_distillation(tmp_path, name):
    assert saved(tmp_path / f"{name}.safetensors", {f"{Q}.diff": torch.ones(2)}).is_distillation is None


def test_distillation_is_known_by_folder_and_title(tmp_path):
    folder = tmp_path / "Wan2.2-T2V-A14B-4steps-lora-rank64-Seko-V1"
    folder.mkdir()
    assert saved(folder / "high_noise_model.safetensors", {f"{Q}.diff": torch.ones(2)}).is_distillation == 'folder says "4steps"'
    titled = saved(tmp_path / "x.safetensors", {f"{Q}.diff": torch.ones(2)}, {"modelspec.title": "My Lightning"})
    assert titled.is_distillation == 'metadata modelspec.title says "lightning"'
