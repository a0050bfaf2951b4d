import os

import pytest
from wan22_master.nodes import freshness


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    return path


def test_an_untouched_file_keeps_the_token_so_nothing_runs_twice(file):
    before = freshness.token(str(file))
    freshness.remember(str(file), [str(file)])
    assert freshness.token(str(file)) == freshness.token(str(file)) == before


@pytest.mark.parametrize("change", ["deleted", "overwritten", "touched"])
def test_a_changed_file_moves_the_token_once(file, change):
    node = f"{file}{change}"
    freshness.remember(node, [str(file)])
    before = freshness.token(node)
    if change == "deleted":
        file.unlink()
    elif change == "overwritten":
        file.write_bytes(b"other weights")
    else:
        os.utime(file, (1, 1))
    assert freshness.token(node) == before + 1 == freshness.token(node)


def test_a_file_that_another_workflow_wrote_under_the_same_node_is_watched_too(file, tmp_path):
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"x")
    for path in (file, other):
        freshness.remember("9", [str(path)])
    before = freshness.token("9")
    file.unlink()
    assert freshness.token("9") == before + 1
