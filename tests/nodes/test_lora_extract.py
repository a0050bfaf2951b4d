from dataclasses import replace

import pytest
from wan22_master.engine.errors import SourceError
from wan22_master.nodes.handles import Dit, MergePass
from wan22_master.nodes.lora_halves import check_models

PAIR = Dit((("high_noise", "h"), ("low_noise", "l")), "Wan 2.2 T2V 14B")
HALF = Dit((("high_noise", "h"),), "Wan 2.2 T2V 14B")


def test_two_models_of_the_same_experts_are_compared():
    check_models(PAIR, PAIR)
    check_models(HALF, HALF)


def test_other_experts_and_merges_that_are_in_no_file_are_refused():
    with pytest.raises(SourceError, match="found high_noise and high_noise \\+ low_noise; load both models alike"):
        check_models(HALF, PAIR)
    merged = replace(PAIR, passes=(MergePass("Pass 1", "addition", 1.0, False, (), ()),))
    for one, other in ((merged, PAIR), (PAIR, merged), (PAIR, replace(PAIR, mix="{}"))):
        with pytest.raises(SourceError, match="save the merge first"):
            check_models(one, other)
