"""A request for a plan as JSON."""
import json

import pytest
from wan22_master.engine.errors import RecipeError
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


def test_an_expert_takes_its_own_file_before_the_one_for_both():
    assert [file_for(FULL.gguf, role) for role in ("high_noise", "low_noise", "model")] == ["a.gguf", "b.gguf", "a.gguf"]
    assert file_for({"high_noise": "l.txt"}, "low_noise") is None
