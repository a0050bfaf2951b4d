"""Which prompt a sampler's run is."""
from dataclasses import replace

import pytest
from wan22_master.engine.calibration.prompt_list import Entry
from wan22_master.nodes import prompt_register
from wan22_master.nodes.prompt_register import find, place_of, remember

CAT = Entry(1, "A cat.", "", 832, 480, 81, 5, 20, 3.5)
DOG = replace(CAT, place=2, prompt="A dog.", seed=6)
RUN = (832, 480, 81, 20)


@pytest.fixture(autouse=True)
def forgotten(monkeypatch):
    monkeypatch.setattr(prompt_register, "_lists", {})


def test_a_run_is_found_by_its_seed_and_size():
    remember([CAT, DOG])
    assert find(5, *RUN) == CAT and find(6, *RUN) == DOG and find(7, *RUN) is None and find(None, *RUN) is None
    for other in ((816, 480, 81, 20), (832, 496, 81, 20), (832, 480, 77, 20)):
        assert find(5, *other) is None


def test_an_expert_runs_a_part_of_the_steps_and_whole_ones_go_first():
    remember([CAT])
    assert find(5, *RUN[:3], 10) == CAT and find(5, *RUN[:3]) == CAT and find(5, *RUN[:3], 21) is None
    short = replace(CAT, prompt="Short.", steps=10)
    remember([CAT, short])
    assert find(5, *RUN[:3], 10) == short and find(5, *RUN) == CAT
    assert find(5, *RUN[:3], 4) is None            # a part of either


def test_two_prompts_that_are_alike_are_none_unless_they_are_one():
    remember([CAT, replace(CAT, prompt="A bird.")])
    assert find(5, *RUN) is None
    remember([CAT, replace(CAT, place=9)])
    assert find(5, *RUN).prompt_id == CAT.prompt_id


def test_a_list_replaces_what_the_same_node_gave_out_before_and_no_other():
    remember([CAT], "1")
    remember([replace(CAT, prompt="A bird.")], "1")
    assert find(5, *RUN).prompt == "A bird."
    remember([DOG], "2")
    assert find(5, *RUN).prompt == "A bird." and find(6, *RUN) == DOG
    remember([], "1")
    assert find(5, *RUN) is None


def test_what_is_remembered_is_bounded_and_the_oldest_goes_first(monkeypatch):
    monkeypatch.setattr(prompt_register, "MOST_LISTS", 3)
    monkeypatch.setattr(prompt_register, "MOST_ENTRIES", 2)
    for seed in range(4):
        remember([replace(CAT, seed=seed + 10 * place) for place in range(3)], str(seed))
    assert [find(seed, *RUN) is not None for seed in (0, 1, 2, 3)] == [False, True, True, True]
    assert find(11, *RUN) is not None and find(21, *RUN) is None
    remember([replace(CAT, seed=1)], "1")          # now the youngest
    remember([CAT], "4")
    assert [find(seed, *RUN) is not None for seed in (1, 2, 3)] == [True, False, True]


def test_a_run_has_a_place_among_those_that_run():
    remember([DOG, CAT])
    assert place_of(CAT) == (2, 2) and place_of(replace(CAT, seed=9)) is None
    remember([CAT], "other")
    assert place_of(CAT) is None


def test_lists_of_other_graphs_do_not_count_where_the_graph_is_known():
    remember([CAT], "1")
    remember([DOG], "2")
    assert find(5, *RUN, lists=["1"]) == CAT and find(5, *RUN, lists=["2"]) is None and find(5, *RUN, lists=[]) is None
