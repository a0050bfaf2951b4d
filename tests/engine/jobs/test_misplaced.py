"""A LoRA that says it is for the other expert is told, wherever the recipe comes from."""
from pathlib import Path

import pytest
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.tests.engine import tiny


@pytest.mark.parametrize(("files", "warned"), [
    ({"low_noise": "style_high_noise"}, ["style_high_noise.safetensors: is put on low_noise, but made for high_noise"]),
    ({"high_noise": "style_low_noise", "low_noise": "style_high_noise"}, ["style_low_noise", "style_high_noise"]),
    ({"high_noise": "style_high_noise", "low_noise": "style_low_noise"}, []),
    ({"high_noise": "style_high_noise", "low_noise": "style_high_noise"}, []),     # one file on both: the user's word
    ({"low_noise": "slow_motion"}, []),
])
def test_a_lora_on_the_wrong_expert_is_told_with_its_evidence(tmp_path, files, warned):
    paths = {role: str(tmp_path / f"{name}.safetensors") for role, name in files.items()}
    for number, path in enumerate(dict.fromkeys(paths.values())):
        tiny.save(Path(path), tiny.lora(number))
    wish = tiny.recipe(tmp_path / "out", tiny.write_pair(tmp_path / "in"), [{"files": paths}])
    with plan_recipe(wish, tmp_path / "r") as plan:
        found = [notice for notice in plan.notices if "made for" in notice]
    assert len(found) == len(warned) and all(said in notice for said, notice in zip(warned, found, strict=True))
    assert all("file name" in notice for notice in found)
