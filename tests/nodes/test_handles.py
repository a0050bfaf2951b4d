import json
import pickle
from dataclasses import replace

import pytest
from wan22_master.engine.recipes.recipe import parse
from wan22_master.nodes.handles import Dit, Files, Job, Lora, LoraStack, MergePass, Output, Plan, Recipe, SavedFile, Scales

LORA = Lora("/models/loras/a_high.safetensors", "/models/loras/a_low.safetensors", 1.0, 0.5)
HIGH_ONLY = Lora("/models/loras/b.safetensors", None, 0.3, 1.0, "classic")
PASS = MergePass("Pass 1", "auto", 1.0, False, (("novelty", 1.5),), (LORA, HIGH_ONLY))
DIT = Dit((("high_noise", "/models/h.safetensors"), ("low_noise", "/models/l.safetensors")), "Wan 2.2 T2V 14B", passes=(PASS,))
FILES = Files((SavedFile("model", "/models/m.safetensors", "bf16", 1, 2),))
WISH = {"layers": {"low_noise": {"blocks.0.ffn.2": "keep"}}, "kept_dtype": "fp16", "suffix": "mine"}
NARROW = Output("nvfp4", "16-bit", ("low_noise",), json.dumps(WISH))
SCALES = Scales(json.dumps({"low_noise": {f"blocks.{block}.ffn.2": 70.0 for block in range(40)}}))
HANDLES = [Plan("balanced", '{"version": 1}'), SCALES, Job(DIT, (NARROW,) * 3),
           LoraStack((LORA,)), Recipe((PASS,)), DIT, Job(DIT, (Output("bf16", "16-bit", ("low_noise",)),)), FILES]


@pytest.mark.parametrize("handle", HANDLES, ids=lambda handle: type(handle).__name__)
def test_a_handle_is_pickled_compared_hashed_and_cannot_be_changed(handle):
    assert pickle.loads(pickle.dumps(handle)) == handle and hash(handle) == hash(pickle.loads(pickle.dumps(handle)))
    with pytest.raises(AttributeError):
        handle.passes = ()


def test_what_comfyui_prints_of_a_handle_is_short_and_names_no_folder():
    many = LoraStack((LORA,) * 50)
    for handle in (many, Recipe((PASS,) * 20), *HANDLES):
        assert len(repr(handle)) < 200 and "/models" not in repr(handle)


def test_a_lora_goes_only_to_the_experts_it_has_a_file_for():
    assert LORA.as_json(("high_noise", "low_noise"))["strength"] == {"high_noise": 1.0, "low_noise": 0.5}
    assert HIGH_ONLY.as_json(("high_noise", "low_noise"))["files"] == {"high_noise": "/models/loras/b.safetensors"}
    assert HIGH_ONLY.as_json(("low_noise",)) is None


def test_a_model_that_is_one_file_takes_the_first_file_and_strength():
    entry = LORA.as_json(("model",))
    assert (entry["files"], entry["strength"]) == ({"model": LORA.high}, {"model": 1.0})


def test_the_asked_method_stays_beside_what_it_became():
    planned = replace(HIGH_ONLY, resolved="addition")
    assert (planned.as_json(("high_noise",))["method"], planned.as_json(("high_noise",))["resolved"]) == ("classic", "addition")


def test_what_handles_say_is_a_recipe_that_the_engine_accepts():
    asked = {"version": 1, "title": "t", "experts": dict(DIT.experts), "passes": [PASS.as_json(DIT.roles)],
             "outputs": [Output("float8_e4m3fn", "fast_uncalibrated", DIT.roles).as_json()]}
    recipe = parse(asked)
    assert recipe.passes[0].loras[1].method == "classic" and recipe.outputs[0].experts == DIT.roles


def test_an_output_says_all_that_quantize_was_asked_for():
    found = parse({"version": 1, "title": "t", "experts": dict(DIT.experts), "outputs": [NARROW.as_json()]}).outputs[0]
    assert (found.format, found.activations, found.experts) == ("nvfp4", "16-bit", ("low_noise",))
    assert found.layers == WISH["layers"] and (found.kept_dtype, found.label) == ("fp16", "nvfp4_mine")
    assert found.forms("low_noise").layers == WISH["layers"]["low_noise"]


def test_what_comfyui_prints_of_plan_scales_and_output_names_counts_not_contents():
    told = [repr(each) for each in (HANDLES[0], SCALES, NARROW)]
    assert told == ["Plan(balanced)", "Scales(40 layers of low_noise)", "Output(nvfp4 for low_noise)"]
