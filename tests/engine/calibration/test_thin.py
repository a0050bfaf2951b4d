"""How tokens are shared out and chosen."""
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from wan22_master.engine.calibration.thin import kept_rows, share


@settings(max_examples=100, deadline=None)
@given(total=some.integers(0, 300), places=some.integers(1, 80), seed=some.integers(0, 99))
def test_shares_add_up_and_are_even(total, places, seed):
    found = [share(total, places, place, seed=seed) for place in range(places)]
    assert sum(found) == total and max(found) - min(found) <= 1


def test_shares_begin_where_the_seed_says():
    assert len({tuple(share(1, 20, place, seed=seed) for place in range(20)) for seed in range(20)}) > 5


@settings(max_examples=100, deadline=None)
@given(count=some.integers(0, 300), wanted=some.integers(0, 300), seed=some.text(max_size=3))
def test_rows_are_kept_once_each_evenly_and_again_the_same(count, wanted, seed):
    found = kept_rows(count, wanted, seed).tolist()
    assert len(found) == min(count, wanted) and found == sorted(set(found)) and set(found) <= set(range(count))
    assert torch.equal(kept_rows(count, wanted, seed), torch.tensor(found, dtype=torch.int64))
    for number, place in enumerate(found if wanted < count else []):
        assert number * count // wanted <= place < (number + 1) * count // wanted
