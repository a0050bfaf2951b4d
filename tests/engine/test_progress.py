"""Progress counts the bytes of the source and the speed of this run; the read-ahead keeps to its budget."""

import itertools
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wan22_master.engine import progress
from wan22_master.engine.errors import Stopped
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.engine.jobs.run import measure, run
from wan22_master.engine.progress import Clock, Progress, ReadAhead
from wan22_master.tests.engine import tiny


class Sizes:
    """A source of which only the sizes matter; notes what it is told to read ahead."""

    def __init__(self, sizes):
        self.sizes, self.advised = sizes, []

    def nbytes(self, key):
        return self.sizes[key]

    def advise(self, key):
        self.advised.append(key)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 100), min_size=1, max_size=30), st.integers(1, 300))
def test_every_tensor_is_advised_once_in_order_before_it_begins_and_within_the_budget(sizes, budget):
    source, keys = Sizes(dict(enumerate(sizes))), list(range(len(sizes)))
    told = []
    with ReadAhead(source, keys, budget) as ahead:
        for number in keys:
            ahead.now(number)
            told.append(ahead.told)
        ahead.thread.submit(int).result()  # what is queued is through
    assert source.advised == keys
    for number, up_to in enumerate(told):
        assert up_to > number
        beyond = sum(sizes[number:up_to])
        assert beyond < budget + sizes[up_to - 1]  # the last one may cross the line
        assert up_to == len(sizes) or beyond >= budget  # and the budget is used


def test_reading_ahead_is_not_waited_for():
    gate, source = threading.Event(), Sizes({0: 1, 1: 1})
    source.advise = lambda key: gate.wait(5)
    with ReadAhead(source, [0, 1]) as ahead:
        ahead.now(0)
        ahead.now(1)
        assert not gate.is_set()
        gate.set()


def test_bytes_of_an_earlier_run_are_done_but_are_no_speed(monkeypatch):
    seconds, told = itertools.count(0, 2), []
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    clock = Clock(1000, told.append)  # at 0 s
    clock.skip(600)
    clock.advance(100, "high_noise", "a", "write")  # at 2 s
    clock.advance(100, "high_noise", "b", "write")  # at 4 s
    assert [(each.done_bytes, each.bytes_per_s, each.eta_s) for each in told] == [(700, 50.0, 6.0), (800, 50.0, 4.0)]
    assert told[0].total_bytes == 1000 and (told[1].expert, told[1].key, told[1].phase) == ("high_noise", "b", "write")


def test_there_is_no_time_left_to_tell_before_there_is_a_rate():
    assert Progress("model", "", "write", 0, 10, 0.0, 0.0).eta_s is None
    assert Progress("model", "", "write", 10, 10, 1.0, 10.0).eta_s == 0.0


@pytest.mark.parametrize("stop_after", [None, 20])
def test_a_job_ends_at_all_its_bytes_and_never_goes_back(tmp_path, stop_after):
    wish = tiny.recipe(tmp_path / "out", tiny.write_pair(tmp_path / "in"), formats=("bf16", "float8_e4m3fn"))
    stored = 2 * sum(tensor.numel() * tensor.element_size() for tensor in tiny.base().values())
    if stop_after:
        asked = itertools.count()
        with pytest.raises(Stopped):
            tiny.go(wish, tmp_path / "r", should_stop=lambda: next(asked) == stop_after)
    told = []
    tiny.go(wish, tmp_path / "r", on_progress=told.append)
    done = [each.done_bytes for each in told]
    assert done == sorted(done) and done[-1] == stored and {each.total_bytes for each in told} == {stored}
    assert [each.phase for each in told if each.expert == "high_noise"][-1] == "check"
    assert {each.key for each in told if each.phase == "write" and each.expert == "low_noise"} == set(tiny.shapes())
    assert sum(each.expert == "high_noise" and each.phase == "write" for each in told) == len(tiny.shapes()) - (stop_after or 0)


def test_measuring_counts_only_what_it_reads(tmp_path):
    wish = tiny.recipe(tmp_path / "out", tiny.write_pair(tmp_path / "in"))
    told, base = [], tiny.base()
    with plan_recipe(wish, tmp_path / "r") as plan:
        measure(plan, reports=tmp_path / "r", on_progress=told.append)
        assert (
            told[-1].done_bytes == told[-1].total_bytes == 2 * sum(base[f"{layer}.weight"].numel() * 2 for layer in tiny.linears())
        )
        assert {each.phase for each in told} == {"measure"}
        run(plan, reports=tmp_path / "r")
