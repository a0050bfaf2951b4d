"""The check after saving: a sound file passes, a broken one is caught, and nothing of either stays in memory."""
import pytest
from test_preview import probe

KINDS = ("t2v high_noise", "t2v low_noise", "i2v high_noise", "ti2v model")


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    return probe("after_save_probe", tmp_path_factory.mktemp("after_save"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sound_file_differs_from_its_reference_by_its_rounding_alone(probed, kind):
    same, nvfp4 = (probed[kind][name][1] for name in ("same", "nvfp4"))
    assert same["differences"] == [0.0, 0.0] and same["problems"] == nvfp4["problems"] == []
    assert all(1e-4 < difference < 0.1 for difference in nvfp4["differences"])   # 0.095 is the error of the weights themselves
    assert probed[kind]["alone"][1]["differences"] is None


def test_each_expert_is_asked_within_its_own_range(probed):
    high, low = (probed[f"t2v {role}"]["same"][1]["sigmas"] for role in ("high_noise", "low_noise"))
    assert min(high) >= 0.9 and max(low) < 0.875   # boundaries of I2V and T2V: both roles fit both tasks
    assert "finite at sigma 0.98 and 0.92; differs from the preview by 0.00% and 0.00%" in probed["t2v high_noise"]["same"][0][0]


def test_a_scale_that_is_a_hundred_times_too_large_is_a_problem(probed):
    lines, found = probed["scale x100"]
    assert len(found["problems"]) == 2 and min(found["differences"]) > 0.5
    assert lines[1].startswith("x100.safetensors: PROBLEM: at sigma 0.95 it differs from the preview by 86")


@pytest.mark.parametrize("name", ["nan", "inf", "overflow"])
def test_a_file_that_would_make_a_black_video_is_an_error_that_names_it(probed, name):
    assert probed[name].startswith(f"MergeError: {name}.safetensors: the saved model: expected finite numbers")
    assert "black video" in probed[name]


def test_a_reference_that_is_not_finite_is_blamed_itself_and_the_file_passes(probed):
    lines, found = probed["reference"]
    assert lines[0].startswith("x100.safetensors: ComfyUI loads it; finite at sigma") and found["differences"] is None
    assert lines[1].startswith("x100.safetensors: PROBLEM: its reference: expected finite numbers at sigma 0.95, found NaN")


def test_what_comfyui_complains_about_while_loading_is_told(probed):
    assert probed["missing"] == ["unet missing: ['blocks.0.ffn.0.bias']", "unet unexpected: ['blocks.0.odd']"]
    assert probed["nan and odd"].endswith("in another format; ComfyUI says: unet unexpected: ['blocks.0.odd']")


@pytest.mark.parametrize(("name", "said"), [("no comfy_quant", "size mismatch for blocks.0.self_attn.q.weight"),
                                            ("unknown format", "KeyError: 'nvfp5'"), ("no model", "Could not detect model type")])
def test_a_file_that_comfyui_does_not_load_is_an_error(probed, name, said):
    assert "expected a file that ComfyUI loads, but it says" in probed[name] and said in probed[name]
    assert len(probed[name]) < 600                 # not every key of the model


def test_neither_file_nor_reference_stays_loaded_and_other_models_do(probed):
    made, alive, others, same = probed["left"]
    assert made == 2 and alive == 0 and others == [True] and same


def test_warnings_of_other_threads_are_not_the_files(probed):
    assert probed["other threads"] == [f"unet says {'x' * 390}"] and probed["handlers"]
