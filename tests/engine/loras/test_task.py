"""T2V or I2V: evidence in its order, and what is said when the model is for the other task."""
from types import SimpleNamespace

import pytest
import torch
from wan22_master.engine.loras.lora import open_lora
from wan22_master.engine.loras.task import task_notice, task_of
from wan22_master.tests.engine import tiny

PAIR = tiny.lora(layers=["blocks.0.self_attn.q"])
T2V, I2V, OTHER = (SimpleNamespace(task=task) for task in ("t2v", "i2v", "ti2v"))


def patches(channels, flat=False):
    down = torch.ones(4, channels * 4) if flat else torch.ones(4, channels, 1, 2, 2)
    up = torch.ones(128, 4)
    return PAIR | {"diffusion_model.patch_embedding.lora_A.weight": down, "diffusion_model.patch_embedding.lora_B.weight": up}


def opened(path, tensors=PAIR, **metadata):
    return open_lora(tiny.save(path, tensors, {key.replace("__", "."): text for key, text in metadata.items()} or None))


@pytest.mark.parametrize(("name", "task"), [
    ("wan2.2_t2v_style", "t2v"), ("Wan2.2-I2V-A14B_high", "i2v"), ("T2Vstyle", None), ("style_text_to_video", "t2v"),
    ("image-to-video-x", "i2v"), ("HighNoise-I2V_T2V", None), ("plain", None), ("wan_t2v720", "t2v"), ("ti2v_5b", None),
])
def test_names_tell_the_task(tmp_path, name, task):
    with opened(tmp_path / f"{name}.safetensors") as lora:
        assert task_of(lora).task == task


def test_the_evidence_is_asked_in_its_order(tmp_path):
    """Each stronger kind of evidence says the opposite of the next one."""
    with opened(tmp_path / "a.safetensors", ss_sd_model_name="wan2.2_t2v_high") as lora:
        assert task_of(lora).task == "t2v" and "ss_sd_model_name" in task_of(lora).evidence
    with opened(tmp_path / "i2v" / "a.safetensors", ss_sd_model_name="wan2.2_t2v_high") as lora:
        assert task_of(lora).task == "i2v" and "folder" in task_of(lora).evidence
    with opened(tmp_path / "i2v" / "t2v.safetensors") as lora:
        assert task_of(lora).task == "t2v" and "file name" in task_of(lora).evidence
    with opened(tmp_path / "t2v.safetensors", modelspec__timestep_range="900,1000") as lora:
        assert task_of(lora).task == "i2v" and "timestep_range" in task_of(lora).evidence
    for flat in (True, False):
        with opened(tmp_path / "x.safetensors", patches(16, flat), modelspec__timestep_range="900,1000") as lora:
            assert task_of(lora).task == "t2v" and "16 channels" in task_of(lora).evidence


@pytest.mark.parametrize(("text", "task"), [
    ("900,1000", "i2v"), ("0,900", "i2v"), ("875,1000", "t2v"), ("0,875", "t2v"), ("875.0, 1000", "t2v"), ("0,1000", None),
    ("x", None),
])
def test_musubis_range_tells_the_task_by_its_border(tmp_path, text, task):
    with opened(tmp_path / "a.safetensors", modelspec__timestep_range=text) as lora:
        assert task_of(lora).task == task


def test_a_style_lora_of_the_other_task_is_a_notice_and_a_distillation_lora_a_warning(tmp_path):
    with opened(tmp_path / "style_i2v.safetensors") as lora:
        found = task_notice(lora, T2V)
        assert found.level == "notice" and "made for image to video" in found.text and "file name" in found.text
        assert task_notice(lora, I2V) is None and task_notice(lora, OTHER) is None
    with opened(tmp_path / "i2v_lightx2v_4step.safetensors") as lora:
        found = task_notice(lora, T2V)
        assert found.level == "warning" and found.text.endswith("take the one for T2V")
    with opened(tmp_path / "plain_lightx2v.safetensors") as lora:
        assert task_notice(lora, T2V) is None
