"""Tables and the progress bar as a person sees them."""
import io

import pytest
from wan22_master.engine.jobs.job import Leftover
from wan22_master.engine.progress import Progress
from wan22_master.engine.terminal import ProgressBar, bar, leftover_lines, plan_table, quality_lines, report_lines, table


def progress(done, total=1000, rate=100.0, key="blocks.0.ffn.0.weight"):
    return Progress("high_noise", key, "write", done, total, 1.0, rate)


def test_numbers_stand_right_text_left_and_nothing_is_a_dash():
    assert table([{"a": "x", "n": 5}, {"a": "long", "n": None}, {"a": None, "n": 0.12345}], ("a", "n")) == [
        "a         n", "x         5", "long      -", "-     0.123"]


def test_the_bar_tells_share_rate_time_left_and_place_and_fits_the_width():
    assert bar(progress(500), 200) == "[############............]  50% 0 MB/s 0:05 left write high_noise blocks.0.ffn.0.weight"
    assert len(bar(progress(500), 40)) == 40
    assert "100%" in bar(progress(0, total=0, rate=0.0), 200) and "left" not in bar(progress(0, rate=0.0), 200)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()], ids=["terminal", "log"])
def test_a_terminal_gets_one_line_redrawn_and_a_log_one_line_a_tenth(stream):
    with ProgressBar(stream) as draw:
        for done in range(0, 1001, 10):
            draw(progress(done))
    text = stream.getvalue()
    if stream.isatty():
        assert text.count("\r") == 102 and "\n" not in text and text.endswith("\r\x1b[2K")
    else:
        assert text.count("\n") == 11 and "\r" not in text


def test_a_report_becomes_a_row_per_file_with_its_notice():
    out = {"file": "a.safetensors", "format": "bf16", "bytes": 5_000_000, "error": 0.0013, "notice": "a was held open"}
    report = {"device": "cpu: as chosen", "notices": ["a was changed", "told"], "experts": [
        {"role": "model", "meter": {"shift": 0.0201, "status": "SATURATED"}, "bytes_per_s": 8e7, "peak_bytes": 9e6,
            "outputs": [out]},
        {"role": "low_noise", "outputs": [{**out, "notice": None, "up_to_date": True}]}]}
    head, first, second, device, changed, notice = report_lines(report, ["told"])
    assert head.split()[0] == "expert"
    assert first.split() == ["model", "bf16", "5", "0.0013", "0.0201", "SATURATED", "80", "9",
        "a.safetensors"]
    assert second.endswith("a.safetensors (already there)")
    assert (device, changed, notice) == ("computed on cpu: as chosen", "note: a was changed", "note: a was held open")
    assert "note: told" in report_lines(report)


def test_weighed_columns_are_told_with_what_they_do_to_the_error():
    assert quality_lines({"weighed": 7}) == [
        "columns of 7 layers weighed by the imatrix: less error of their outputs, more of their weights, which is the error told"]
    assert quality_lines({"weighed": 0}) == []


def test_a_plan_that_does_not_fit_says_so_below_its_table():
    row = {"expert": "model", "needed_bytes": 6 * 10**9, "free_bytes": 10**10}
    volume = {"volume": "/models", "needed_bytes": 6 * 10**9, "peak_bytes": 12 * 10**9, "free_bytes": 10**10}
    assert plan_table([row], [{**volume, "peak_bytes": 10**10}], "all at once")[2:] == [
        "/models: 6.00 GB more in the end, 10.00 GB at the peak, 10.00 GB free; order: all at once"]
    assert plan_table([row], [volume], "all at once")[2].startswith("does not fit: 12.00 GB are needed, 10.00 GB are free")


def test_a_leftover_that_cannot_go_on_is_listed_with_its_problem():
    assert leftover_lines([]) == ["no unfinished job"]
    good, bad = Leftover("/out/a.safetensors", "mix", 5_000_000, 0.5), Leftover("/out/b.safetensors", "", 0, 0.0, "not a job file")
    lines = leftover_lines([good, bad])
    assert lines[1].split() == ["a.safetensors", "mix", "5", "50%", "-"] and lines[2].endswith("not a job file")
