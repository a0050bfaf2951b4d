"""The original's rule on rows that are built here, and its list as a plan reads it."""
import pytest
import torch
from wan22_master.engine.calibration.sensitive import as_lines, by_original_rule
from wan22_master.engine.errors import RecipeError
from wan22_master.engine.plans.layer_lists import parse
from wan22_master.engine.specs import TensorSpec

CV = {"blocks.10.ffn.0": 0.3, "blocks.2.self_attn.o": 0.11, "blocks.2.self_attn.q": 0.1099, "blocks.2.cross_attn.k": 0.0003,
      "blocks.0.cross_attn.norm_q": 0.5, "text_embedding.0": 0.9, "blocks.3.ffn.2": None}
ROWS = [{"layer": layer, "scale_mean": 0.0 if cv is None else 2.0, "scale_std": 2.0 * (cv or 0.0)} for layer, cv in CV.items()]


def test_all_of_cross_attention_and_what_varies_enough_is_listed_by_block():
    found = by_original_rule(ROWS)
    assert found.varying == ("blocks.2.self_attn.o", "blocks.10.ffn.0") and found.cross == ("blocks.2.cross_attn.k",)
    assert found.of == 5                           # linears of blocks: neither the norm nor the embedding


@pytest.mark.parametrize(("threshold", "count"), [(0.0, 3), (0.1099, 3), (0.3, 1), (0.31, 0), (float("inf"), 0)])
def test_the_threshold_is_the_least_that_counts(threshold, count):
    assert len(by_original_rule(ROWS, threshold).varying) == count


@pytest.mark.parametrize("wrong", [-0.1, float("nan")])
def test_a_threshold_that_is_none_is_refused(wrong):
    with pytest.raises(RecipeError, match="sensitive layers: threshold"):
        by_original_rule(ROWS, wrong)


def test_the_list_says_its_rule_and_is_read_by_a_plan():
    text = as_lines({"high_noise": by_original_rule(ROWS), "low_noise": by_original_rule(ROWS[:1])}, 0.11)
    assert "scale_cv at or above 0.11" in text and "no measure of sensitivity" in text
    assert "# high_noise: 1 of cross-attention, 2 more by scale_cv, of 5" in text
    model = {f"{layer}.weight": TensorSpec((4, 4), torch.bfloat16) for layer in CV if "norm" not in layer}
    layers, notices = parse(text, model, "list")
    assert layers == ["blocks.2.self_attn.o", "blocks.10.ffn.0", "blocks.2.cross_attn.k"] and notices == []
