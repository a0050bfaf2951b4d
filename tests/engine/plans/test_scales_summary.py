"""The summary of a calibration, in rows of the original's schema with numbers of our own."""
import json

import pytest
from wan22_master.engine.errors import MergeError, RecipeError
from wan22_master.engine.plans.scales_summary import from_summary, read_summary

NAMES = ("self_attn.q", "self_attn.v", "cross_attn.k", "ffn.0", "ffn.2")
LAYERS = [f"blocks.{number}.{name}" for number in range(6) for name in NAMES]


def row(layer: str, largest: float, **more) -> dict:
    """As analyze_input_scale_log.py writes it, of a layer whose amax was `largest` once in a thousand calls and 3/4 of it else."""
    columns = {"min": 0.5, "mean": 0.75, "std": 0.01, "kurtosis": float("nan"), "p50": 0.75,
               "p99": 0.75, "p99_9": 0.875, "max": 1.0}
    found = {"layer": layer, "count": 640, **{f"scale_{name}": round(share * largest / 2688, 6) for name, share in columns.items()}}
    return found | {f"amax_{name}": share * largest for name, share in columns.items()} | more


def summary(*rows: dict) -> dict:
    return {"format": "nvfp4", "mode": "dynamic", "percentiles": [50.0, 99.0, 99.9], "layers": list(rows)}


FOUND = summary(row("blocks.2.ffn.0", 8.0), row("blocks.2.self_attn.q", 16.0))


def test_the_largest_input_counts_twice_unless_told_otherwise():
    scales = from_summary(FOUND, LAYERS, share=False)
    assert scales.amax == {"blocks.2.self_attn.q": 32.0, "blocks.2.ffn.0": 16.0}
    assert from_summary(FOUND, LAYERS, multiplier=1.0).amax["blocks.2.ffn.0"] == 8.0
    assert "input scales of 2 layers from the summary (largest, times 2)" in scales.notices


@pytest.mark.parametrize(("percentile", "share"), [(99.9, 0.875), (99.0, 0.75), (99, 0.75), (50, 0.75)])
def test_a_percentile_is_one_of_the_columns(percentile, share):
    assert from_summary(FOUND, LAYERS, percentile=percentile, multiplier=1.08).amax["blocks.2.ffn.0"] == 1.08 * share * 8.0


def test_a_percentile_that_is_not_there_is_an_error_that_names_those_that_are():
    with pytest.raises(RecipeError, match=r"blocks\.2\.ffn\.0: expected amax_p99_99 .* found percentiles 50, 99, 99\.9"):
        from_summary(FOUND, LAYERS, percentile=99.99)


def test_the_same_input_is_shared_and_what_is_left_is_told():
    scales = from_summary(summary(row("blocks.2.self_attn.q", 16.0), row("blocks.2.cross_attn.k", 2.0)), LAYERS)
    assert scales.amax["blocks.2.self_attn.v"] == 32.0 and scales.amax["blocks.5.cross_attn.k"] == 4.0
    assert "blocks.2.ffn.2" not in scales.amax
    assert any("have no input scale: ffn.0 (6), ffn.2 (6), self_attn.q (5), self_attn.v (5)" in each for each in scales.notices)


def test_scale_columns_serve_where_amax_is_missing_and_that_is_told():
    without = {name: value for name, value in row("blocks.2.ffn.0", 8.0).items() if not name.startswith("amax")}
    scales = from_summary(summary(without), LAYERS, multiplier=1.0)
    # six decimals of 8 / 2688: half a millionth, times 2688
    assert scales.amax["blocks.2.ffn.0"] == pytest.approx(8.0, abs=0.5e-6 * 2688)
    assert any("lack amax_max: scale_max serves" in each for each in scales.notices)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0, None, "8", True])
def test_a_value_that_is_no_amax_is_refused_by_layer_and_column(wrong):
    with pytest.raises(RecipeError, match=r"blocks\.2\.ffn\.0: amax_max: expected a finite number"):
        from_summary(summary(row("blocks.2.ffn.0", 8.0, amax_max=wrong)), LAYERS)


def test_a_layer_that_only_saw_zeros_gets_no_scale_and_is_counted():
    scales = from_summary(summary(row("blocks.2.ffn.0", 8.0), row("blocks.3.ffn.0", 0.0)), LAYERS)
    assert list(scales.amax) == ["blocks.2.ffn.0"]
    assert any("1 layers of the summary had inputs of zero only" in each for each in scales.notices)


@pytest.mark.parametrize(("found", "said"), [
    ({}, "expected a list of rows"), (summary(), "expected a list of rows"), (summary({"count": 1}), r"layers\[0\]"),
    (summary(7), r"layers\[0\]"), (summary(row("blocks.2.ffn.0", 8.0), row("blocks.2.ffn.0", 8.0)), "expected one row, found two"),
    (summary(row("x" * 201, 8.0)), r"layers\[0\]"),
    (summary(row("transformer_blocks.2.ffn.0", 8.0)), "expected layers of this model"),
])
def test_another_schema_is_refused(found, said):
    with pytest.raises(RecipeError, match=said):
        from_summary(found, LAYERS)


@pytest.mark.parametrize("multiplier", [0.0, -1.0, float("nan"), float("inf")])
def test_a_multiplier_is_finite_and_above_0(multiplier):
    with pytest.raises(RecipeError, match="multiplier"):
        from_summary(FOUND, LAYERS, multiplier=multiplier)


def test_a_summary_is_read_from_its_file_and_nothing_else_is(tmp_path):
    path = tmp_path / "s.json"
    path.write_text(json.dumps(FOUND))
    assert from_summary(read_summary(path), LAYERS).amax["blocks.2.ffn.0"] == 16.0
    path.write_text("nvfp4\tdynamic\tblocks.0.self_attn.q\t0.008405\t22.593750\t(33440, 3072)")
    with pytest.raises(RecipeError, match=r"s\.json: expected the JSON of a scales summary"):
        read_summary(path)
    with pytest.raises(MergeError, match=r"gone\.json"):
        read_summary(tmp_path / "gone.json")
