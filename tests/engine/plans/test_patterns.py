"""Include and exclude patterns: their order, and what matches nothing."""
import re

import pytest
from wan22_master.engine.errors import RecipeError
from wan22_master.engine.plans.patterns import apply
from wan22_master.engine.plans.plan import KEEP, Choice, block_linears
from wan22_master.tests.engine.plans import models

BASE = {layer: Choice("nvfp4", full_precision=True, reason="base") for layer in block_linears(models.small(12))}


def test_include_beats_exclude_and_the_later_include_wins():
    found, idle = apply(BASE, [(r"\.ffn\.", "mxfp8"), (r"ffn\.2", "float8_e4m3fn")], [r"blocks\.1\."])
    assert not idle
    for layer, choice in found.items():
        expected = "float8_e4m3fn" if layer.endswith("ffn.2") else "mxfp8" if ".ffn." in layer else (
            KEEP if layer.startswith("blocks.1.") else "nvfp4")
        assert choice.format == expected
    assert found["blocks.1.ffn.2"].reason == (
        r"base; exclude blocks\.1\.: keep; include \.ffn\.: mxfp8; include ffn\.2: float8_e4m3fn")
    assert not found["blocks.1.self_attn.q"].full_precision and found["blocks.2.ffn.0"].full_precision


def test_patterns_are_searched_ignoring_case():
    found, _ = apply(BASE, [], ["SELF_attn.Q"])
    assert {layer for layer in found if found[layer].format == KEEP} == {f"blocks.{n}.self_attn.q" for n in range(12)}


def test_every_pattern_that_matches_nothing_is_told():
    found, idle = apply(BASE, [("head", "mxfp8")], ["blocks.99", "ffn"])
    assert len(idle) == 2 and "exclude pattern blocks.99 matches none of the 120" in idle[0] and "include pattern head" in idle[1]
    assert found["blocks.0.self_attn.q"] == BASE["blocks.0.self_attn.q"]


@pytest.mark.parametrize("pattern", ["(", "[z-a]", "a{99999999999999999999}", "*"])
def test_a_bad_pattern_is_named(pattern):
    with pytest.raises(RecipeError, match=f"exclude pattern: expected a regular expression, found {re.escape(repr(pattern))}"):
        apply(BASE, [], [pattern])
