"""Bands cover every row once, and workers take them without losing order, errors or memory."""

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from wan22_master.engine.bands import BAND_ELEMENTS, TILE_ROWS, Workers, band_rows, one_thread, split, take_one_thread

BANDS = [(n, n + 1) for n in range(60)]


@given(st.lists(st.integers(0, 20_000), max_size=3).map(tuple))
def test_bands_cover_every_row_once_in_whole_tiles(shape):
    bands = split(shape)
    total = shape[0] if shape else 1
    assert [row for start, stop in bands for row in (start, stop)] == sorted(row for start, stop in bands for row in (start, stop))
    assert (not bands and total == 0) or (bands[0][0] == 0 and bands[-1][1] == total)
    assert all(one[1] == other[0] for one, other in itertools.pairwise(bands))
    assert all((stop - start) % TILE_ROWS == 0 for start, stop in bands[:-1]) and all(start < stop for start, stop in bands)


@pytest.mark.parametrize(
    ("shape", "rows"),
    [((13824, 5120), 128), ((5120, 13824), 128), ((5120, 16, 1, 2, 2), 10240), ((8960, 1536), 384), ((5120,), 655360)],
)
def test_a_band_holds_about_the_elements_that_fit_the_cache(shape, rows):
    assert band_rows(shape) == rows
    assert rows == TILE_ROWS or rows * torch.Size(shape[1:]).numel() <= BAND_ELEMENTS


@pytest.mark.parametrize("count", [1, 2, 5])
def test_results_come_in_band_order_whatever_takes_longer(count):
    def compute(rows):
        time.sleep(0.002 * (rows[0] % 3 == 0))
        return rows[0] ** 2

    with Workers(count) as workers:
        assert workers.map(compute, BANDS) == [n * n for n, _ in BANDS]
        assert list(workers.each(compute, [])) == []


@pytest.mark.parametrize("count", [1, 3])
def test_finished_bands_do_not_pile_up(count):
    begun = []
    with Workers(count) as workers:
        for taken, _ in enumerate(workers.each(lambda rows: begun.append(rows), BANDS)):
            time.sleep(0.001)
            assert len(begun) <= taken + 3 * count + 1


def test_an_error_in_one_band_reaches_the_caller_and_nothing_runs_on():
    running, after = threading.Event(), []

    def compute(rows):
        if rows[0] == 3:
            raise ValueError("band 3")
        running.set()
        time.sleep(0.01)
        after.append(rows)

    with Workers(2) as workers:
        with pytest.raises(ValueError, match="band 3"):
            workers.map(compute, BANDS)
        seen = len(after)
        time.sleep(0.05)
        assert running.is_set() and len(after) == seen < 12


def test_a_caller_that_goes_away_leaves_no_band_running():
    after = []

    def compute(rows):
        time.sleep(0.01)
        after.append(rows)

    with Workers(2) as workers:
        results = workers.each(compute, BANDS)
        next(results)
        results.close()
        seen = len(after)
        time.sleep(0.05)
        assert len(after) == seen < len(BANDS)


def test_a_band_is_computed_with_one_torch_thread_and_without_autograd_and_both_are_put_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with Workers(2) as workers:
            assert set(workers.map(lambda rows: (torch.get_num_threads(), torch.is_inference_mode_enabled()), BANDS)) == {(1, True)}
        later = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))  # takes what any thread set last
        thread.start()
        thread.join()
        assert later == [2] and torch.get_num_threads() == 2 and not torch.is_inference_mode_enabled()
    finally:
        torch.set_num_threads(before)


def test_one_thread_is_the_callers_own_choice_and_put_back():
    before = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            with pytest.raises(KeyError), one_thread():
                assert torch.get_num_threads() == 1
                raise KeyError
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)


def test_a_worker_keeps_to_one_torch_thread_whatever_is_set_elsewhere():
    before, gate = torch.get_num_threads(), threading.Event()
    try:
        with ThreadPoolExecutor(1, initializer=take_one_thread) as pool:
            waiting = pool.submit(gate.wait, 5)
            while not waiting.running():               # its thread has been started
                time.sleep(0.001)
            torch.set_num_threads(3)
            gate.set()
            assert pool.submit(torch.get_num_threads).result() == 1
    finally:
        torch.set_num_threads(before)


def test_threads_are_of_the_asked_number():
    barrier = threading.Barrier(3)
    with Workers(3) as workers:
        workers.map(lambda rows: barrier.wait(timeout=5), BANDS[:3])  # breaks unless three run at once
        assert len(set(workers.map(lambda rows: threading.get_ident(), BANDS))) <= 3
