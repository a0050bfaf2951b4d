import json
from pathlib import Path

import pytest
from wan22_master.nodes.judge import finite, for_browser, judged, summary

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "report.json").read_text(encoding="utf-8"))


def words(report: dict) -> list[str]:
    return [expert["meter"]["status"] for expert in report["experts"]]


def test_default_thresholds_leave_the_golden_words():
    assert words(judged(GOLDEN, 0.015, 0.03, 12)) == words(GOLDEN) == ["STABLE", "VOLATILE"]


@pytest.mark.parametrize(("stable", "volatile", "expected"), [
    (0.5, 0.6, ["STABLE", "STABLE"]), (0.001, 0.5, ["SATURATED", "SATURATED"]), (0.0, 0.0, ["VOLATILE", "VOLATILE"])])
def test_thresholds_of_the_node_decide_the_word_and_stand_in_the_report(stable, volatile, expected):
    report = judged(GOLDEN, stable, volatile, 3)
    assert words(report) == expected
    meter = report["experts"][0]["meter"]
    assert (meter["stable_below"], meter["volatile_above"], len(meter["top"])) == (stable, volatile, 3)
    assert words(GOLDEN) == ["STABLE", "VOLATILE"]


def test_no_infinity_reaches_the_browser_at_any_depth():
    value = finite({"a": [float("inf"), {"b": float("nan")}, (1.5, -float("inf"))], "c": "inf"})
    assert value == {"a": [None, {"b": None}, [1.5, None]], "c": "inf"}
    json.dumps(value, allow_nan=False)


def test_the_browser_gets_the_meter_and_no_folder():
    sent = for_browser(GOLDEN)
    assert "/models" in json.dumps(GOLDEN) and "/" not in json.dumps(sent)
    assert sent["experts"][1]["meter"] == GOLDEN["experts"][1]["meter"]


def test_the_summary_names_each_expert_and_a_single_model_by_no_expert():
    assert summary(GOLDEN).splitlines()[1].startswith("low_noise: VOLATILE, shift 0.03")
    single = {"experts": [{**GOLDEN["experts"][0], "role": "model"}]}
    assert summary(single).startswith("STABLE, shift 0.0")


def test_the_golden_report_has_the_shape_that_the_engine_writes_today(tmp_path):
    from wan22_master.engine.plan import plan_recipe
    from wan22_master.engine.recipe import parse
    from wan22_master.engine.run import measure
    from wan22_master.engine.synthetic import Sizes, write_set

    made = write_set(tmp_path, Sizes(dim=128, ffn=256, blocks=4, rank=8), seed=1)
    loras = [{"files": files, "strength": {"high_noise": 1.0}} for files in (made.native_lora, made.kohya_lora)]
    recipe = parse({"version": 1, "title": "golden", "experts": made.experts,
                    "passes": [{"name": f"Pass {number}", "loras": [lora]} for number, lora in enumerate(loras, 1)]})
    with plan_recipe(recipe, tmp_path / "reports") as plan:
        assert shape(measure(plan, reports=tmp_path / "reports")) == shape(GOLDEN)


def shape(value):
    """Names and kinds, without values."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items() if key not in {"recipe"}}
    if isinstance(value, list):
        return [shape(each) for each in value]
    return "number" if isinstance(value, int | float) else type(value).__name__
