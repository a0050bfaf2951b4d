import torch
from wan22_master.engine.kept import Kept

TEN = 10 * 4                                       # bytes of ten float32


def ask(kept: Kept, key: str) -> bool:
    """Ask as a layer does; whether it was there."""
    found = kept.find(key)
    if found is None:
        kept.offer(key, {"": torch.zeros(9), "_scale": torch.zeros(1)})
    return found is not None


def test_a_budget_for_half_of_the_layers_serves_half_of_every_round():
    kept, keys = Kept(5 * TEN), [str(number) for number in range(10)]
    for key in keys:
        ask(kept, key)
    for _ in range(3):
        assert sum(ask(kept, key) for key in keys) == 5   # dropping the longest unused one would serve none
    assert kept.nbytes == 5 * TEN


def test_what_is_not_asked_for_any_more_makes_room():
    kept = Kept(2 * TEN)
    for key in ("resident 1", "resident 2", "a", "b"):
        ask(kept, key)
    assert not ask(kept, "a") and not ask(kept, "b")   # the second time they are asked for, the others were not
    assert ask(kept, "a") and ask(kept, "b") and set(kept.tensors) == {"a", "b"}


def test_nothing_is_kept_beyond_the_budget():
    kept = Kept(TEN - 1)
    ask(kept, "a")
    assert not ask(kept, "a") and kept.nbytes == 0
