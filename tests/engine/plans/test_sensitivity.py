"""Sensitivity files and the feed-forward switches."""
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wan22_master.engine.errors import RecipeError
from wan22_master.engine.plans import sensitivity
from wan22_master.engine.plans.plan import KEEP, Choice, block_linears, read_object
from wan22_master.quant.formats import BLOCK_TYPES
from wan22_master.tests.engine.plans import models

MODEL = models.small(2)
LAYERS = list(block_linears(MODEL))


def test_nan_in_a_file_is_no_evidence_and_counted(tmp_path):
    (tmp_path / "s.json").write_text(
        '{"model": "m", "samples": 16, "layers": [{"layer": "blocks.0.ffn.0", "count": 16, "rel_rmse_mean": NaN, "max_abs": 0.0},'
        ' {"layer": "blocks.0.ffn.2", "rel_rmse_mean": 0.5}, {"layer": "blocks.1.ffn.2", "rel_rmse_mean": Infinity},'
        ' {"layer": "blocks.0.cross_attn.k_img", "rel_rmse_mean": 0.6}, {"layer": "blocks.1.ffn.0", "rel_rmse_mean": 0.4}]}')
    over, notices = sensitivity.flagged(read_object(tmp_path / "s.json", "x"), 0.4, MODEL, "s.json")
    assert over == {"blocks.0.ffn.2": 0.5}  # 0.4 is not over 0.4
    assert "1 names are not in this model: blocks.0.cross_attn.k_img" in notices[0]
    assert notices[1] == "s.json: 2 of 5 layers have no finite rel_rmse_mean, which is no evidence about them"


@given(st.dictionaries(st.sampled_from(LAYERS), st.floats(0, 1) | st.just(float("nan"))), st.floats(0, 1))
def test_exactly_what_is_over_the_threshold_changes(values, threshold):
    found = {"layers": [{"layer": layer, "rel_rmse_mean": value} for layer, value in values.items()]}
    over, _ = sensitivity.flagged(json.loads(json.dumps(found)), threshold, MODEL, "s.json")
    base = {layer: Choice("nvfp4", reason="base") for layer in LAYERS}
    kept = sensitivity.apply(base, over, threshold, KEEP)
    full = sensitivity.apply(base, over, threshold, "full_precision")
    for layer in LAYERS:
        is_over = layer in values and values[layer] > threshold  # as the original compares; false for NaN
        assert (kept[layer].format == KEEP) == full[layer].full_precision == is_over
        assert full[layer].format == "nvfp4" and (kept[layer] == base[layer]) == (not is_over)


@pytest.mark.parametrize("found", [{}, {"layers": {}}, {"layers": [1]}, {"layers": [{"layer": 1}]},
                                   {"layers": [{"layer": "a", "rel_rmse_mean": "x"}]}])
def test_another_json_is_refused(found):
    with pytest.raises(RecipeError, match=r"s\.json: .*choose a sensitivity JSON"):
        sensitivity.flagged(found, 0.1, MODEL, "s.json")


def test_the_ffn_switches_lift_only_what_is_narrower():
    names = ["nvfp4", "asym_w4a8_int8", "float8_e4m3fn", "int8_tensorwise", KEEP]
    parts = ("ffn.0", "ffn.2", "self_attn.q")
    base = {f"blocks.{number}.{part}": Choice(name) for number, name in enumerate(names) for part in parts}
    lifted = sensitivity.min_ffn_fp8(base)
    expected = ["float8_e4m3fn", "int8_tensorwise", "float8_e4m3fn", "int8_tensorwise", KEEP]
    for part in parts[:2]:
        assert [lifted[f"blocks.{n}.{part}"].format for n in range(5)] == expected
    assert all(lifted[f"blocks.{n}.self_attn.q"] == base[f"blocks.{n}.self_attn.q"] for n in range(5))
    kept = sensitivity.min_ffn2_16bit(base)
    assert {layer for layer in base if kept[layer] != base[layer]} == {f"blocks.{n}.ffn.2" for n in range(4)}
    assert kept["blocks.0.ffn.2"] == Choice(KEEP, reason="ffn.2 in 16 bit: keep")


def test_the_ffn_switch_lifts_every_type_of_gguf_to_q8_0():
    base = {f"blocks.{n}.{part}": Choice(name) for n, name in enumerate(BLOCK_TYPES) for part in ("ffn.2", "self_attn.v")}
    lifted = sensitivity.min_ffn_fp8(base)
    assert {lifted[f"blocks.{n}.ffn.2"].format for n in range(len(BLOCK_TYPES))} == {"Q8_0"}
    assert all(lifted[layer] == base[layer] for layer in base if layer.endswith(".v"))
