"""Where files go: each rule of `choose` on a real folder, and the disk check on volumes that are pretended."""

import json
import os

import pytest
from wan22_master.engine.errors import PlanError
from wan22_master.engine.jobs import targets
from wan22_master.engine.jobs.job import Job

NAMES = {"high_noise": "mix_high.safetensors", "low_noise": "mix_low.safetensors"}
IDS = {role: (f"id {role}", f"wish {role}", [{"name": "base", "size": 1}]) for role in NAMES}


def choose(folder, on_exists="number", names=NAMES):
    found = targets.choose(str(folder), names, {role: IDS[role] for role in names}, on_exists, folder / "reports")
    return {role: (os.path.basename(target.path), target.state) for role, target in found.items()}


def begin(folder, name, job_id, wish, sources=IDS["high_noise"][2]):
    Job(str(folder / name), job_id, wish, {"title": "mix"}, sources, {}, str(folder)).save()


def finish(folder, name, role):
    (folder / name).write_bytes(b"weights")
    stat = (folder / name).stat()
    (folder / "reports").mkdir(exist_ok=True)
    record = {"version": 1, "target": os.path.realpath(folder / name), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    targets.done_record(folder / "reports", IDS[role][0]).write_text(json.dumps(record))


def test_an_empty_or_missing_folder_takes_the_plain_names(tmp_path):
    wanted = {role: (name, "new") for role, name in NAMES.items()}
    assert choose(tmp_path) == wanted
    assert targets.choose(str(tmp_path / "missing"), NAMES, IDS, "error", tmp_path)["low_noise"].state == "new"


@pytest.mark.parametrize(
    "taken",
    [
        ("mix_low.safetensors",),
        ("mix_high.safetensors", "mix_low-2.safetensors"),
        ("mix_high.safetensors", "mix_high-2.safetensors", "mix_low-3.safetensors"),
    ],
)
def test_both_halves_get_the_first_number_that_is_free_for_both(tmp_path, taken):
    for name in taken:
        (tmp_path / name).write_bytes(b"")
    number = len(taken) + 1
    assert choose(tmp_path) == {role: (name.replace(".", f"-{number}."), "new") for role, name in NAMES.items()}


def test_overwriting_spares_what_another_job_began(tmp_path):
    (tmp_path / "mix_high.safetensors").write_bytes(b"")
    assert choose(tmp_path, "overwrite")["high_noise"] == ("mix_high.safetensors", "new")
    begin(tmp_path, "mix_high.safetensors", "other", "other wish")
    assert choose(tmp_path, "overwrite")["high_noise"] == ("mix_high-2.safetensors", "new")


def test_error_refuses_the_first_taken_name_and_says_the_way_out(tmp_path):
    (tmp_path / "mix_low.safetensors").write_bytes(b"")
    with pytest.raises(PlanError, match=r"mix_low\.safetensors: exists already; choose another name, or set on_exists"):
        choose(tmp_path, "error")


@pytest.mark.parametrize("on_exists", ["number", "overwrite", "error"])
def test_our_own_files_are_never_in_the_way(tmp_path, on_exists):
    finish(tmp_path, "mix_high.safetensors", "high_noise")
    begin(tmp_path, "mix_low.safetensors", *IDS["low_noise"][:2])
    assert choose(tmp_path, on_exists) == {
        "high_noise": ("mix_high.safetensors", "done"),
        "low_noise": ("mix_low.safetensors", "resume"),
    }


def test_a_job_goes_on_under_its_number_when_a_lower_one_got_free(tmp_path):
    begin(tmp_path, "mix_low-4.safetensors", *IDS["low_noise"][:2])
    wanted = {"high_noise": ("mix_high-4.safetensors", "new"), "low_noise": ("mix_low-4.safetensors", "resume")}
    assert choose(tmp_path) == wanted
    assert choose(tmp_path, names={"low_noise": NAMES["low_noise"]}) == {"low_noise": wanted["low_noise"]}
    (tmp_path / "mix_high-4.safetensors").write_bytes(b"another's")
    assert choose(tmp_path) == {role: (name, "new") for role, name in NAMES.items()}


def test_a_changed_source_is_named_and_an_unchanged_one_is_not(tmp_path):
    begin(
        tmp_path,
        "mix_high.safetensors",
        "id of before",
        IDS["high_noise"][1],
        [{"name": "base", "size": 2}, {"name": "lora", "sha256": "1"}],
    )
    found = targets.choose(
        str(tmp_path),
        NAMES,
        IDS | {"high_noise": (*IDS["high_noise"][:2], [{"name": "base", "size": 1}, {"name": "lora", "sha256": "1"}])},
        "number",
        tmp_path,
    )["high_noise"]
    assert (found.state, found.notice) == ("changed", "mix_high.safetensors: changed since it was begun: base; it starts over")


@pytest.mark.parametrize("change", ["content", "time", "record", "moved"])
def test_done_means_the_very_file_untouched(tmp_path, change):
    finish(tmp_path, "mix_high.safetensors", "high_noise")
    path, reports = tmp_path / "mix_high.safetensors", tmp_path / "reports"
    assert targets.is_done(reports, "id high_noise", str(path))
    if change == "content":
        path.write_bytes(b"longer weights")
    elif change == "time":
        os.utime(path, ns=(0, 1))
    elif change == "record":
        targets.done_record(reports, "id high_noise").unlink()
    else:
        os.rename(path, path := tmp_path / "renamed.safetensors")
    assert not targets.is_done(reports, "id high_noise", str(path))


def test_only_so_many_numbers_are_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "MOST", 3)
    for name in ("mix_high.safetensors", "mix_high-2.safetensors"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(PlanError, match="3 files of that name exist already; choose another name"):
        choose(tmp_path)


@pytest.mark.parametrize("there", ["mix_high.safetensors.part", "mix_low.safetensors.part"])
def test_a_part_without_our_record_is_somebody_elses(tmp_path, there):
    (tmp_path / there).write_bytes(b"a browser's download")
    assert choose(tmp_path) == {"high_noise": ("mix_high-2.safetensors", "new"), "low_noise": ("mix_low-2.safetensors", "new")}


def test_a_name_that_was_taken_since_the_job_began_is_left_alone(tmp_path):
    begin(tmp_path, "mix_high.safetensors", "id high_noise", "wish high_noise")
    (tmp_path / "mix_high.safetensors").write_bytes(b"somebody else's")
    assert choose(tmp_path)["high_noise"] == ("mix_high-2.safetensors", "new")
    assert choose(tmp_path, "overwrite")["high_noise"] == ("mix_high.safetensors", "resume")


def test_error_says_when_an_unfinished_file_holds_the_name(tmp_path):
    begin(tmp_path, "mix_high.safetensors", "another id", "another wish")
    with pytest.raises(PlanError, match="an unfinished file holds this name; resume or delete it"):
        choose(tmp_path, "error")


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"version": 2}'])
def test_a_damaged_record_counts_as_none(tmp_path, text):
    (tmp_path / "reports").mkdir()
    targets.done_record(tmp_path / "reports", "id high_noise").write_text(text)
    assert choose(tmp_path)["high_noise"] == ("mix_high.safetensors", "new")
