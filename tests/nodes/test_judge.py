import importlib.util
import json
from pathlib import Path

import pytest
from wan22_master.nodes.judge import finite, for_browser, judged, judged_shift, side_needles, summary

FOLDER = Path(__file__).resolve().parents[1] / "golden"
GOLDEN = json.loads((FOLDER / "report.json").read_text(encoding="utf-8"))
LOW = GOLDEN["experts"][1]["meter"]


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


def plain(meter: dict) -> dict:
    """The meter of a merge without a distillation LoRA."""
    return {**meter, "loras": [{**lora, "protected": False} for lora in meter["loras"]]}


def test_the_summary_names_each_expert_and_a_single_model_by_no_expert():
    assert summary(GOLDEN).splitlines()[1].startswith("low_noise: VOLATILE, shift 0.03")
    single = {"experts": [{**GOLDEN["experts"][0], "role": "model"}]}
    assert summary(single).startswith("STABLE, shift 0.0")


def test_the_word_judges_the_merge_without_its_distillation_loras():
    needles = {"all": 0.5, "distillation": 0.45, "rest": 0.01}
    report = {"experts": [{**GOLDEN["experts"][1], "meter": {**LOW, "shift": 0.5, "needles": needles}}]}
    assert words(judged(report, 0.015, 0.03, 12)) == ["STABLE"]
    assert summary(judged(report, 0.015, 0.03, 12)).startswith(
        "low_noise: STABLE, shift 0.0100 without distillation, distillation 0.4500, all 0.5000, over touched layers alone ")


def test_side_needles_stand_only_where_a_distillation_lora_is_merged():
    assert side_needles(LOW) == {name: LOW["needles"][name] for name in ("distillation", "all")}
    assert side_needles(plain(LOW)) == {}
    assert "distillation" not in summary({"experts": [{**GOLDEN["experts"][1], "meter": plain(LOW)}]})


def test_a_reading_of_the_version_that_knew_one_needle_is_judged_by_it():
    old = {name: value for name, value in LOW.items() if name != "needles"}
    assert judged_shift(old) == LOW["shift"] and side_needles(old) == {}


def test_the_golden_report_has_the_shape_that_the_engine_writes_today(tmp_path):
    spec = importlib.util.spec_from_file_location("make_report", FOLDER / "make_report.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert shape(script.whole_report(tmp_path)) == shape(GOLDEN)


def shape(value):
    """Names and kinds, without values."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items() if key not in {"recipe"}}
    if isinstance(value, list):
        return [shape(each) for each in value]
    return "number" if isinstance(value, int | float) else type(value).__name__
