"""Strengths by block and kind: what a name means, and which tensors it touches."""
from itertools import permutations

import pytest
from wan22_master.engine.recipes.scope import factor, parse, write


@pytest.mark.parametrize(("key", "expected"), [
    ("blocks.0.self_attn.q.weight", 0.5), ("blocks.8.ffn.0.weight", 0.5 * 0.8), ("blocks.9.ffn.2.bias", 0.8),
    ("blocks.12.cross_attn.o.weight", 3.0), ("blocks.30.cross_attn.o.weight", 1.0), ("blocks.39.norm3.weight", 0.25),
    ("patch_embedding.weight", 0.25), ("head.modulation", 0.25), ("blocks.3.modulation", 0.5 * 0.25),
])
def test_the_narrowest_range_and_the_kind_multiply_in_any_order(key, expected):
    scope = {"0-39": 1.0, "0-8": 0.5, "12": 3.0, "ffn": 0.8, "other": 0.25}
    for names in permutations(scope):
        assert factor({name: scope[name] for name in names}, key) == pytest.approx(expected)


def test_presets_are_the_ranges_of_the_original():
    scope = {"structure": 2.0, "motion": 3.0, "aesthetic": 5.0}
    assert [factor(scope, f"blocks.{n}.ffn.0.weight") for n in (0, 8, 9, 30, 31, 39)] == [2, 2, 3, 3, 5, 5]


def test_text_is_read_back_as_it_was_written():
    assert parse(" 0-8: 0.5, ffn:0.8 ; motion: -1\n") == {"0-8": 0.5, "ffn": 0.8, "motion": -1.0}
    assert parse("") == {} and parse(write({"0-8": 0.5, "ffn": 0.25})) == {"0-8": 0.5, "ffn": 0.25}


@pytest.mark.parametrize("text", ["8-0: 1", "head: 1", "0-8", "0-8: x", "0: 1, 0: 2", "blocks.3: 1", "0-8: 1, 4-12: 2",
                                  "structure: 1, 0-8: 1", "3: 1, 3-3: 2"])
def test_what_cannot_be_meant_is_refused(text):
    with pytest.raises(ValueError, match=r"8-0|head|0-8|x|twice|blocks|equally wide"):
        parse(text)
