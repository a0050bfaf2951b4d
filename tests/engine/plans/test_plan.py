"""A plan as JSON: what is written comes back, and what is not a plan is refused with its place."""
import json

import pytest
from wan22_master.engine.errors import RecipeError
from wan22_master.engine.plans.plan import KEEP, Choice, PrecisionPlan, block_linears, counts
from wan22_master.tests.engine.plans import models

PLAN = PrecisionPlan(
    "gguf-q5_k_m", {"high_noise": {"blocks.0.ffn.0": Choice("nvfp4", full_precision=True, reason="größer"),
                                   "blocks.0.ffn.2": Choice(KEEP), "blocks.1.ffn.2": Choice(KEEP)}},
    kept_dtype="fp16", fp32_names=("head.modulation",), notices=("one",))


def test_a_saved_plan_comes_back_and_leaves_no_part_file(tmp_path):
    path = tmp_path / "a.json"
    PLAN.save(path)
    assert PrecisionPlan.load(path) == PLAN and [each.name for each in tmp_path.iterdir()] == ["a.json"]
    assert json.loads(path.read_text(encoding="utf-8"))["version"] == 1


def test_fields_with_a_default_may_be_missing():
    assert PrecisionPlan.from_json({"version": 1, "title": "a", "experts": {}}) == PrecisionPlan("a", {})


@pytest.mark.parametrize(("change", "place"), [
    ({"version": 2}, "plan.version: expected 1, found 2"), ({"version": None}, "plan.version"),
    ({"titel": "a"}, "did you mean title"),
    ({"title": ""}, "plan.title"), ({"kept_dtype": "fp32"}, "plan.kept_dtype"), ({"fp32_names": [1]}, r"plan.fp32_names\[0\]"),
    ({"experts": {"middle": {}}}, "plan.experts.middle"), ({"experts": {"model": []}}, "plan.experts.model"),
    ({"experts": {"model": {"blocks.0.ffn.0": {"format": "bf16"}}}}, "blocks.0.ffn.0.format: .*nvfp4.*found 'bf16'"),
    ({"experts": {"model": {"blocks.0.ffn.0": {"format": "keep", "full_precision": 1}}}}, "true or false"),
    ({"experts": {"model": {"blocks.0.ffn.0": {}}}}, "ffn.0.format: expected a value"),
    ({"experts": {"model": {"blocks.0.ffn.0": {"format": "keep", "scale": 1}}}}, "ffn.0.scale"),
])
def test_what_is_no_plan_is_refused_with_its_place(change, place):
    found = PLAN.to_json() | change
    with pytest.raises(RecipeError, match=place):
        PrecisionPlan.from_json(json.loads(json.dumps(found)))
    with pytest.raises(RecipeError, match="object"):
        PrecisionPlan.from_json([])


def test_a_plan_is_for_one_kind_of_file():
    def plan(*names: str) -> PrecisionPlan:
        return PrecisionPlan("a", {"model": {f"blocks.{n}.ffn.0": Choice(name) for n, name in enumerate(names)}})

    assert [plan(*names).container for names in (["nvfp4", KEEP], ["Q4_K", KEEP, "IQ4_XS"], [KEEP], [])] == [
        "safetensors", "gguf", "safetensors", "safetensors"]
    assert PrecisionPlan.from_json(json.loads(json.dumps(plan("Q4_K", KEEP).to_json()))) == plan("Q4_K", KEEP)
    with pytest.raises(RecipeError, match=r"plan a: model: blocks\.1\.ffn\.0: expected a type of GGUF, .*found mxfp8; choose"):
        PrecisionPlan.from_json(plan("Q4_K").to_json() | {"experts": {"model": {
            "blocks.0.ffn.0": {"format": "Q4_K"}, "blocks.1.ffn.0": {"format": "mxfp8"}}}})


@pytest.mark.parametrize(("body", "found"), [(b"{", "in JSON"), (b"\xff\xfe", "UTF-8"), (b'{"a": 1, "a": 2}', "twice"),
                                             (b'{"version": 3}', "plan.version")])
def test_a_file_that_is_no_plan_is_named(tmp_path, body, found):
    (tmp_path / "b.json").write_bytes(body)
    with pytest.raises(RecipeError, match=rf"b\.json: .*{found}"):
        PrecisionPlan.load(tmp_path / "b.json")
    with pytest.raises(RecipeError, match=r"none\.json: .*check the path"):
        PrecisionPlan.load(tmp_path / "none.json")


def test_counts_are_by_format_the_most_frequent_first():
    assert list(counts(PLAN, "high_noise").items()) == [(KEEP, 2), ("nvfp4", 1)]


def test_block_linears_are_ten_of_each_block_and_nothing_else():
    found = block_linears(models.small(3))
    assert len(found) == 30 and all(layer.startswith("blocks.") and "norm" not in layer for layer in found)
