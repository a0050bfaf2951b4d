import pytest
from wan22_master.nodes.save_text import duration, leftover_lines, plan_lines, result_lines, size, table, volume_lines

ROW = {"expert": "high_noise", "format": "bf16", "bytes": 28_600_000_000, "state": "new", "seconds": 95.0,
       "memory_bytes": 1_200_000_000, "file": "mix.safetensors", "needed_bytes": 28_600_000_000, "free_bytes": 40_000_000_000}


def test_the_table_has_a_column_of_experts_only_for_a_pair():
    assert table([ROW])["rows"] == [["high_noise", "bf16", "28.60 GB", "new", "1:35 min", "1.20 GB", "40.00 GB", "mix.safetensors"]]
    single = table([{**ROW, "expert": "model"}])
    assert single["head"][0] == "format" and single["rows"][0][0] == "bf16"


@pytest.mark.parametrize(("change", "word"), [({}, "written"), ({"resumed": True}, "resumed and written"),
                                              ({"up_to_date": True, "resumed": True}, "already up to date")])
def test_a_file_is_told_as_written_resumed_or_already_there(change, word):
    output = {"file": "mix.safetensors", "bytes": 5_000_000, "error": 0.0265, "resumed": False, **change}
    report = {"experts": [{"outputs": [output]}], "notices": ["a notice"]}
    assert result_lines(report) == [f"mix.safetensors: {word}, 5.0 MB, error 2.65%", "note: a notice"]


def test_sizes_and_times_are_told_in_words():
    assert [size(1_000_000), size(10**8), duration(3.4), duration(60)] == ["1.0 MB", "0.10 GB", "3 s", "1:00 min"]


def test_a_plan_says_first_that_it_does_not_fit_and_nothing_of_that_when_it_does():
    assert plan_lines(["n"]) == ["note: n", "plan only: nothing was written"]
    volume = {"volume": "/models", "needed_bytes": 40_000_000_000, "peak_bytes": 57_200_000_000, "free_bytes": 40_000_000_000}
    first, second = volume_lines([volume], "all at once")
    assert first.startswith("does not fit: 57.20 GB are needed, 40.00 GB are free")
    assert second == "/models: 40.00 GB more in the end, 57.20 GB at the peak, 40.00 GB free; order: all at once"
    assert volume_lines([{**volume, "peak_bytes": 1}], "all at once") == [second.replace("57.20", "0.00")]


def test_an_unreadable_job_is_listed_with_its_problem_and_breaks_nothing(tmp_path):
    (tmp_path / "a.safetensors.job.json").write_text("no json")
    (tmp_path / "a.safetensors.part").write_bytes(b"123")
    [line] = leftover_lines(str(tmp_path))
    assert line.startswith("unfinished: a.safetensors, 0.0 MB, cannot go on: ") and "not a job file of this pack" in line
    assert leftover_lines(str(tmp_path / "gone")) == []
