import threading

from wan22_master.engine.analysis.scratch import Scratch


def test_memory_is_reused_under_its_name_and_grows():
    scratch = Scratch()
    large = scratch.take("a", 4, 8)
    small = scratch.take("a", 3, 5)
    assert small.shape == (3, 5) and small.is_contiguous() and small.data_ptr() == large.data_ptr()
    assert scratch.take("b", 3, 5).data_ptr() != small.data_ptr()
    assert scratch.take("a", 9, 9).shape == (9, 9)


def test_every_thread_has_its_own():
    scratch = Scratch()
    seen = [scratch.take("a", 1000)]
    thread = threading.Thread(target=lambda: seen.append(scratch.take("a", 1000)))
    thread.start()
    thread.join()
    assert seen[0].data_ptr() != seen[1].data_ptr()
