"""The log in the original's form: what is written for a record that is built here, and what is read of logs of any kind."""
import bz2
import gzip
import lzma

import pytest
import torch
from wan22_master.engine.calibration.log import lines, read
from wan22_master.engine.calibration.records import Call, StepRecord
from wan22_master.engine.errors import MergeError, RecipeError

LINE = "nvfp4\tdynamic\tblocks.0.self_attn.q\t0.008405\t22.593750\t(33440, 3072)\n"
POINTS = {"blocks.0.self_attn.q": ("blocks.0.self_attn.q", "blocks.0.self_attn.k"), "blocks.0.ffn.0": ("blocks.0.ffn.0",)}


def step(calls: list[Call], amax: list[list[float]], rows: list[list[int]]) -> StepRecord:
    """A record of the points above, whose inputs have 4 and 6 channels; points that no call saw are in no mapping."""
    seen = [point for column, point in enumerate(POINTS) if any(row[column] for row in rows)]
    squares = {point: torch.ones(channels) for point, channels in zip(POINTS, (4, 6), strict=True) if point in seen}
    return StepRecord(0, tuple(calls), tuple(POINTS), torch.tensor(amax), torch.tensor(rows), squares, dict.fromkeys(seen, 1), {},
                      torch.zeros(2, 3, dtype=torch.int64), {})


def test_a_pass_is_one_line_a_layer_with_the_largest_of_cond_and_uncond():
    record = step([Call(0.9, "cond"), Call(0.9, "uncond")], [[22.59375, 0.5], [2.0, 0.25]], [[10, 10], [10, 10]])
    assert lines(record, POINTS).splitlines() == [
        "nvfp4\tdynamic\tblocks.0.self_attn.q\t0.008405\t22.593750\t(20, 4)",
        "nvfp4\tdynamic\tblocks.0.self_attn.k\t0.008405\t22.593750\t(20, 4)",
        "nvfp4\tdynamic\tblocks.0.ffn.0\t0.000186\t0.500000\t(20, 6)"]


@pytest.mark.parametrize(("calls", "passes"), [
    ([("cond", 0.9), ("uncond", 0.9)], 1), ([("uncond", 0.9), ("cond", 0.9)], 1), ([("cond", 0.9), ("uncond", 0.5)], 2),
    ([("cond", 0.9), ("uncond", 0.9), ("cond", 0.9), ("uncond", 0.9)], 2), ([("cond", 0.9), ("cond", 0.9)], 2)])
def test_calls_of_one_sigma_and_different_parts_are_one_pass(calls, passes):
    record = step([Call(sigma, part) for part, sigma in calls], [[1.0, 1.0]] * len(calls), [[5, 5]] * len(calls))
    assert lines(record, POINTS).count("blocks.0.ffn.0") == passes


def test_a_point_without_input_has_no_line_and_one_that_is_not_finite_says_so():
    record = step([Call(0.9, "cond"), Call(0.9, "uncond")], [[float("inf"), float("nan")], [2.0, float("nan")]], [[10, 0], [10, 0]])
    told = lines(record, POINTS)
    assert "ffn" not in told and told.splitlines()[0] == "nvfp4\tdynamic\tblocks.0.self_attn.q\tinf\tinf\t(20, 4)"


def test_a_part_that_did_not_reach_a_point_takes_nothing_from_it():
    record = step([Call(0.9, "cond"), Call(0.9, "uncond")], [[float("nan"), 1.0], [3.0, 1.0]], [[0, 7], [7, 7]])
    assert "self_attn.q\t0.001116\t3.000000\t(7, 4)" in lines(record, POINTS)


def test_what_is_written_is_read_again(tmp_path):
    record = step([Call(0.9, "cond")], [[22.59375, 0.5]], [[10, 10]])
    (tmp_path / "high_noise.log").write_text(lines(record, POINTS) * 3)
    log = read(tmp_path / "high_noise.log")
    assert {layer: list(values) for layer, values in log.amax.items()} == {
        "blocks.0.self_attn.q": [22.59375] * 3, "blocks.0.self_attn.k": [22.59375] * 3, "blocks.0.ffn.0": [0.5] * 3}
    assert list(log.scales["blocks.0.ffn.0"]) == [0.000186] * 3 and log.formats == {"nvfp4"}


@pytest.mark.parametrize(("ending", "pack"), [("log", bytes), ("LOG", bytes), ("log.gz", gzip.compress), ("log.xz", lzma.compress),
                                              ("txt.bz2", bz2.compress), ("log.XZ", lzma.compress)])
def test_a_log_is_packed_as_its_name_says(tmp_path, ending, pack):
    path = tmp_path / f"calib.{ending}"
    path.write_bytes(pack(LINE.encode() * 2))
    assert list(read(path).amax["blocks.0.self_attn.q"]) == [22.59375] * 2


def test_lines_without_a_format_are_an_older_log(tmp_path):
    (tmp_path / "a.log").write_text(LINE.removeprefix("nvfp4\t"))
    assert list(read(tmp_path / "a.log").amax["blocks.0.self_attn.q"]) == [22.59375]


def test_what_was_not_measured_is_left_out_and_counted(tmp_path):
    given = "nvfp4\tprovided\tblocks.0.self_attn.q\t0.008405\t-\t(10, 4)\n"
    broken = LINE.replace("22.593750", "nan") + LINE.replace("0.008405\t22.593750", "inf\tinf")
    foreign = ("hello\n" + "x" * 9000 + "\n" + LINE.replace("dynamic", "static") + LINE.replace("22.593750", "-1.0")
               + LINE.replace("22.593750", "1e300") + LINE.replace("22.593750", "much") + "nvfp4\tdynamic\t\t1.0\t2.0\t(1, 2)\n")
    (tmp_path / "a.log").write_text(given + broken + foreign + "\n\n" + LINE + LINE.replace("nvfp4", "float8_e4m3fn"))
    log = read(tmp_path / "a.log")
    # 9000 letters without a break are three pieces of at most 4096
    assert (log.provided, log.broken, log.foreign) == (1, 2, 1 + 3 + 5)
    assert list(log.amax["blocks.0.self_attn.q"]) == [22.59375] * 2 and log.formats == {"nvfp4", "float8_e4m3fn"}


@pytest.mark.parametrize(("name", "body", "said"), [
    ("a.log", b"", "found 0 others"), ("a.log", b"hello\n", "found 1 others"),
    ("a.log", b"dynamic\tx\t1.0\t-\t(1, 2)\n", "found 1 others"),
    ("a.log.xz", b"version https://git-lfs.github.com/spec/v1\n", "expected a packed log"),
    ("a.log.gz", gzip.compress(LINE.encode())[:-9], "expected a packed log"), ("a.log.gz", b"hello", "cannot be read")])
def test_a_file_that_is_no_log_is_refused(tmp_path, name, body, said):
    (tmp_path / name).write_bytes(body)
    with pytest.raises(MergeError, match=said):
        read(tmp_path / name)


def test_a_log_that_unpacks_without_end_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("wan22_master.engine.calibration.log.MOST_LINES", 100)
    (tmp_path / "a.log.gz").write_bytes(gzip.compress(LINE.encode() * 101))
    with pytest.raises(RecipeError, match="at most 100 lines"):
        read(tmp_path / "a.log.gz")
