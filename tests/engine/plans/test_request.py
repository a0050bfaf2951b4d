"""A request for a plan as JSON."""
import json

import pytest
from wan22_master.engine.errors import RecipeError
from wan22_master.engine.plans.plan import KEEP
from wan22_master.engine.plans.request import Include, PlanRequest, file_for, parse

FULL = PlanRequest(
    gguf={"both": "a.gguf", "low_noise": "b.gguf"}, gguf_nvfp4_max_bitdepth=5, use_fp8=True, keep_edge_blocks=True,
    min_ffn_fp8=True, min_ffn2_16bit=True,
    sensitivity={"both": "s.json"}, sensitivity_threshold=0.2, sensitivity_action="full_precision",
    exclude=("a",), include=(Include("b", "float8_e4m3fn"),), full_precision_lists={"high_noise": "l.txt"},
    full_precision_switches=("ffn_up", "cross_attn_kv"), kept_dtype="fp16")


def test_a_request_comes_back_from_json():
    assert parse(json.loads(json.dumps(FULL.to_json()))) == FULL
    assert parse({"version": 1, "preset": "speed"}) == PlanRequest(preset="speed")


@pytest.mark.parametrize(("change", "place"), [
    ({"version": 2}, "version"), ({"gguf": {}}, "exactly one source of format, preset, gguf, plan, budget_gb, found"),
    ({"preset": "speed"}, "exactly one source"), ({"sensitivity_threshold": None}, "sensitivity_threshold"),
    ({"gguf": {"middle": "a"}}, "gguf.middle"), ({"gguf_nvfp4_max_bitdepth": 0}, "from 1"), ({"hardware": "tpu"}, "hardware"),
    ({"include": [{"pattern": "a"}]}, r"include\[0\].format"),
    ({"include": [{"pattern": "a", "format": "fp16"}]}, r"include\[0\].format"),
    ({"full_precision_switches": ["all"]}, r"switches\[0\]"), ({"kept_dtype": "fp8"}, "kept_dtype"),
    ({"ggufs": 1}, "did you mean gguf"),
])
def test_what_is_no_request_is_refused_with_its_place(change, place):
    with pytest.raises(RecipeError, match=place):
        parse(json.loads(json.dumps(FULL.to_json() | change)))
    with pytest.raises(RecipeError, match="object"):
        parse("balanced")


@pytest.mark.parametrize("request_", [
    {"format": "Q4_K_M"}, {"format": "Q4_K"}, {"format": "IQ4_XS"}, {"format": KEEP}, {"budget_gb": 9},
    {"gguf": {"both": "a.gguf"}},
    {"format": "Q8_0", "include": [{"pattern": "a", "format": "Q6_K"}, {"pattern": "b", "format": "keep"}]}])
def test_a_gguf_is_asked_for_in_its_own_words(request_):
    found = parse({"version": 1, "container": "gguf", **request_})
    assert found.container == "gguf" and parse(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(("request_", "said"), [
    ({"format": "nvfp4", "container": "gguf"}, "request.format: expected a format of a gguf file, found 'nvfp4', choose another"),
    ({"format": "Q4_K_M"}, "format: expected a format of a safetensors file, found 'Q4_K_M', choose another, or gguf as container"),
    ({"format": "nvfp4", "include": [{"pattern": "a", "format": "Q6_K"}]}, "include: expected a format of a safetensors file"),
    ({"format": "Q6_K", "container": "gguf", "include": [{"pattern": "a", "format": "mxfp8"}]}, "expected a format of a gguf"),
    ({"format": "Q6_K", "container": "gguf", "include": [{"pattern": "a", "format": "Q4_K_M"}]}, r"include\[0\].format: .*Q4_K"),
    ({"format": "F16", "container": "gguf"}, r"request\.format"), ({"format": "q4_k", "container": "gguf"}, "format: expected"),
    ({"preset": "speed", "container": "gguf"}, "preset: expected none for a GGUF, .*choose a mix as Q4_K_M"),
    ({"budget_gb": 9.0, "minimum_fast": 0.5, "container": "gguf"}, "minimum_fast: expected 0 for a GGUF, .*found 0.5, set it to 0"),
    ({"format": "nvfp4", "container": "zip"}, "plan request.container: expected safetensors or gguf"),
])
def test_what_a_kind_of_file_has_not_is_refused_with_the_way_out(request_, said):
    with pytest.raises(RecipeError, match=said):
        parse({"version": 1, **request_})


def test_the_fields_that_ask_for_products_in_16_bit_are_named():
    assert FULL.full_precision == ("full_precision_lists", "full_precision_switches", "sensitivity_action")
    assert PlanRequest(format="nvfp4", sensitivity_action="full_precision").full_precision == ()


def test_an_expert_takes_its_own_file_before_the_one_for_both():
    assert [file_for(FULL.gguf, role) for role in ("high_noise", "low_noise", "model")] == ["a.gguf", "b.gguf", "a.gguf"]
    assert file_for({"high_noise": "l.txt"}, "low_noise") is None
