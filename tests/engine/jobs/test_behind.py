"""Work behind others: in order, with what is held bounded, and what goes wrong told once."""
import threading

import pytest
from wan22_master.engine.jobs import behind


def test_work_is_done_in_the_order_in_which_it_was_given():
    follower, done = behind.Behind("test"), []
    for number in range(200):
        follower.submit(done.append, number, nbytes=1)
    follower.settle()
    follower.close()
    assert done == list(range(200)) and follower.held == 0


def test_the_caller_waits_while_too_much_is_held(monkeypatch):
    monkeypatch.setattr(behind, "LIMIT", 10)
    follower, gate, given = behind.Behind("test"), threading.Event(), []

    def hand_over():
        for number in range(5):
            follower.submit(gate.wait, 5, nbytes=6)
            given.append(number)

    caller = threading.Thread(target=hand_over)
    caller.start()
    caller.join(0.2)
    assert given == [0, 1]                         # 12 bytes are held: the third has to wait
    gate.set()
    caller.join(5)
    follower.settle()
    follower.close()
    assert given == [0, 1, 2, 3, 4]


def test_after_an_error_nothing_more_is_done_and_the_caller_is_told_once():
    follower, done = behind.Behind("test"), []

    def fail():
        raise OSError("disk")

    follower.submit(done.append, 1)
    follower.submit(fail)
    with pytest.raises(OSError, match="disk"):
        for _ in range(10_000):                    # at one of the next calls
            follower.submit(done.append, 2)
        follower.settle()
    follower.settle()
    follower.close()
    assert done == [1]
