"""Every Wan class of ComfyUI goes through Load -> Save and is still that class, with nothing missing and nothing unexpected."""
import json
import subprocess

import pytest
from comfy_server import PACK, find_comfyui

# Classes of ComfyUI 0.33 (comfy/supported_models.py) and two kinds that share one with another.
CLASSES = {name: name for name in (
    "WAN22_T2V", "WAN21_CausalAR_T2V", "WAN21_T2V", "WAN21_I2V", "WAN21_FunControl2V", "WAN21_Vace", "WAN21_Camera", "WAN22_Camera",
    "WAN22_S2V", "WAN21_HuMo", "WAN22_Animate", "WAN_Animate2", "WAN21_FlowRVS", "WAN21_SCAIL", "WAN21_SCAIL2", "WAN22_WanDancer")}
KINDS = CLASSES | {"first and last frame": "WAN21_I2V", "fun control 2.2": "WAN21_T2V"}


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    (comfyui, python), folder = find_comfyui(), tmp_path_factory.mktemp("kinds")
    command = [str(each) for each in (python, PACK / "tests/comfyui/kinds_probe.py", comfyui, PACK, folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_is_detected_as_what_it_was(probed, kind):
    found = probed[kind]
    assert (found["before"], found["after"]) == (KINDS[kind], KINDS[kind])
    assert found["log"] == []
    assert found["moved"] == []
    assert found["quantized"] >= 20                # ten linears in each of two blocks at least


def test_comfyui_has_no_wan_class_that_is_not_tried(probed):
    assert set(probed) == set(KINDS)
