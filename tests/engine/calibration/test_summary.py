"""The 24 columns against their definitions in exact fractions, from the text of a log that the pack wrote."""
import csv
import json
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as some
from wan22_master.engine.calibration import log
from wan22_master.engine.calibration.by_pass import ByPass
from wan22_master.engine.calibration.records import Call, StepRecord
from wan22_master.engine.calibration.summary import Measured, coefficient, columns, of_log, of_session, summarize, write
from wan22_master.engine.errors import RecipeError
from wan22_master.engine.plans.scales_summary import from_summary, read_summary

Q, K = "blocks.10.self_attn.q", "blocks.10.self_attn.k"
HEAD = ["layer", "count", *(f"{name}_{column}" for name in ("scale", "amax") for column in (
    "min", "max", "mean", "std", "kurtosis", "outlier_frac_3std", "p50", "p90", "p95", "p99", "p99_9"))]
# float32 amax from 2^-8 to 2^10: six decimals keep them apart, and a real one is 0.5 to 74
AMAX = some.floats(2.0 ** -8, 2.0 ** 10, width=32)


def exact(texts: list[str]) -> dict[str, Fraction | float | None]:
    """The definitions over the decimals of a log's column, in fractions: no rounding takes part before the last root."""
    values = sorted(Fraction(Decimal(text)) for text in texts)
    n, mean = len(values), sum(values) / len(values)
    m2, m4 = (sum((value - mean) ** power for value in values) / n for power in (2, 4))
    found = {"min": values[0], "max": values[-1], "mean": mean, "std": math.sqrt(m2),
             "kurtosis": m4 / m2 ** 2 - 3 if m2 else None,
             "outlier_frac_3std": Fraction(sum((value - mean) ** 2 > 9 * m2 for value in values), n) if m2 else None}
    for name, percent in (("p50", "50"), ("p90", "90"), ("p95", "95"), ("p99", "99"), ("p99_9", "99.9")):
        place = (n - 1) * Fraction(percent) / 100
        below = int(place)
        above = min(below + 1, n - 1)
        found[name] = values[below] + (values[above] - values[below]) * (place - below)
    return found


def on_the_edge(texts: list[str]) -> bool:
    """Whether a value lies 3 std from the mean but for rounding: one in ten calls that is unlike nine equal ones does exactly."""
    values = [Fraction(Decimal(text)) for text in texts]
    mean = sum(values) / len(values)
    m2 = sum((value - mean) ** 2 for value in values) / len(values)
    return any(abs((value - mean) ** 2 - 9 * m2) < m2 / 10 ** 6 for value in values if m2)


@settings(max_examples=60, deadline=None)
@given(some.lists(some.tuples(AMAX, AMAX), min_size=1, max_size=40))
def test_the_summary_of_a_log_that_we_wrote_is_what_the_definitions_say(tmp_path_factory, pairs):
    record = StepRecord(0, tuple(Call(float(step), part) for step in range(len(pairs)) for part in ("cond", "uncond")), (Q,),
                        torch.tensor(pairs).reshape(-1, 1), torch.ones(2 * len(pairs), 1, dtype=torch.int64),
                        {Q: torch.ones(8)}, {Q: 1}, {}, torch.zeros(1, 3, dtype=torch.int64), {})
    path = tmp_path_factory.mktemp("log") / "high_noise.log"
    path.write_text(log.lines(record, {Q: (Q, K)}))
    summary = summarize(of_log(log.read(path)))
    assert (summary["format"], summary["mode"], summary["percentiles"]) == ("nvfp4", "dynamic", [50.0, 90.0, 95.0, 99.0, 99.9])
    assert [row["layer"] for row in summary["layers"]] == [K, Q] and list(summary["layers"][0]) == HEAD
    fields = [line.split("\t") for line in path.read_text().splitlines() if f"\t{Q}\t" in line]
    row = summary["layers"][1]
    assert row["count"] == len(pairs) == len(fields)
    for column, name in ((3, "scale"), (4, "amax")):
        texts = [line[column] for line in fields]
        assume(not on_the_edge(texts))
        for measure, value in exact(texts).items():
            found = row[f"{name}_{measure}"]
            if value is None:
                assert found is None
            else:
                # float64 and sums of 40 numbers; a kurtosis divides by the spread twice, which six decimals keep above 10^-9
                assert found == pytest.approx(float(value), rel=1e-6, abs=1e-12), measure


def test_of_equal_calls_and_of_one_call_shape_does_not_exist():
    for values in ([0.1] * 3, [7.0]):              # 0.1 + 0.1 + 0.1 is not 0.3 in float64, so a mean may miss
        found = columns(values)
        assert (found["std"], found["kurtosis"], found["outlier_frac_3std"]) == (0.0, None, None)
        assert found["mean"] == found["p99_9"] == values[0]


def test_tiny_and_large_inputs_have_a_shape_too():
    for factor in (1e-100, 1.0, 3e38 / 640):      # a log may hold any number; 3e38 is float32's largest
        found = columns([factor * value for value in (1, 2, 2, 2, 640)])
        assert found["kurtosis"] == pytest.approx(columns([1, 2, 2, 2, 640])["kurtosis"], rel=1e-12)   # float64


@pytest.mark.parametrize(("outliers", "share"), [(1, 1 / 11), (2, 0.0)])
def test_an_outlier_lies_more_than_three_std_from_the_mean(outliers, share):
    # k of n unlike the rest lie sqrt((n - k) / k) std away: sqrt(10) and sqrt(4.5)
    assert columns([1.0] * (11 - outliers) + [5.0] * outliers)["outlier_frac_3std"] == share


def test_a_session_has_the_exact_amax_of_each_pass_that_saw_a_layer():
    measured = of_session(ByPass(np.array([0, 0, 2]), {Q: np.array([3.0, 5.0, np.nan]), K: np.full(3, np.nan)}))
    assert list(measured.amax) == [Q] and list(measured.amax[Q]) == [3.0, 5.0]
    assert list(measured.scales[Q]) == [3.0 / 2688, 5.0 / 2688]


def test_a_session_without_any_input_is_an_error_that_says_what_to_do():
    with pytest.raises(RecipeError, match="sample a prompt"):
        summarize(of_session(ByPass(np.zeros(1, dtype=np.int64), {Q: np.array([np.nan])})))


def test_both_files_are_read_by_strict_readers_and_by_ours(tmp_path):
    measured = Measured({Q: [0.5, 0.25], K: [0.125]}, {Q: [1344.0, 672.0], K: [336.0]})
    paths = write(summarize(measured), tmp_path / "calib_high_noise_summary")
    told = json.loads((tmp_path / "calib_high_noise_summary.json").read_text(), parse_constant=pytest.fail)   # NaN is no JSON
    assert told == summarize(measured) and told["layers"][0]["amax_kurtosis"] is None
    assert from_summary(read_summary(paths[0]), [Q, K]).amax == {Q: 2 * 1344.0, K: 2 * 336.0}
    with open(paths[1], newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == HEAD and [row["layer"] for row in rows] == [K, Q]
    assert rows[0]["scale_kurtosis"] == "nan" and rows[1]["count"] == "2" and rows[1]["amax_mean"] == "1008.000000"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calib_high_noise_summary.csv", "calib_high_noise_summary.json"]


def test_another_percentile_is_one_more_column_that_can_be_asked_for():
    summary = summarize(Measured({Q: [0.0, 1.0]}, {Q: [0.0, 2688.0]}), [99.0, 97.5])
    assert summary["percentiles"] == [97.5, 99.0] and "scale_p97_5" in summary["layers"][0]
    assert from_summary(summary, [Q], percentile=97.5, multiplier=1.0).amax[Q] == pytest.approx(2620.8, rel=1e-12)  # float64


def test_logs_of_several_formats_are_called_all(tmp_path):
    line = "\tdynamic\tblocks.0.ffn.0\t0.001000\t2.688000\t(1, 2)\n"
    (tmp_path / "a.log").write_text(f"nvfp4{line}float8_e4m3fn{line}")
    assert summarize(of_log(log.read(tmp_path / "a.log")))["format"] == "all"


@pytest.mark.parametrize(("row", "cv"), [({"scale_mean": 2.0, "scale_std": 0.5}, 0.25),
                                         ({"scale_mean": 0.0, "scale_std": 0.0}, None), ({}, None),
                                         ({"scale_mean": 1.0, "scale_std": float("nan")}, None)])
def test_scale_cv_is_std_over_mean_where_both_are_known(row, cv):
    assert coefficient(row) == cv
