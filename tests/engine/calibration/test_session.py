"""Runs on disk: nothing is lost but the step that was being written, nothing counts twice, nothing leaves its folder."""
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from wan22_master.engine.calibration import records, run_writer
from wan22_master.engine.calibration.gather import gather
from wan22_master.engine.calibration.records import StepRecord
from wan22_master.engine.calibration.session import RunFacts, Session, sessions
from wan22_master.engine.calibration.statistics import Recorder
from wan22_master.engine.errors import HeaderError, PlanError, RecipeError
from wan22_master.tests.engine.calibration import recorded
from wan22_master.tests.engine.calibration.recorded import POINTS, ROLE, SUBJECT

LAYER, POINT = "blocks.0.self_attn.v", "blocks.0.self_attn.q"   # a layer, and the point it belongs to


def files(found, number=1):
    return sorted(path.name for path in (Path(found.folder) / "runs").glob(f"{number:04d}_*/*"))


def test_a_step_comes_back_as_it_was_and_the_safetensors_library_reads_it(tmp_path):
    recorder = records.StepRecord
    found = recorded.session(tmp_path)
    writer = found.begin_run(ROLE, SUBJECT, RunFacts(steps=4), POINTS)
    recorded.write_steps(writer, [5], 1)
    path = Path(writer.folder) / "step_0005.safetensors"
    first, foreign = recorder.load(path), load_file(path)
    first.save(tmp_path / "again.safetensors")
    assert path.read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    assert first.step == 5 and [call.part for call in first.calls] == ["uncond", "cond"]
    assert torch.equal(foreign["amax"], first.amax) and foreign["squares.1.blocks.0.ffn.2"].dtype is torch.float64
    assert torch.equal(foreign["tokens.1.blocks.0.ffn.2"], first.tokens["blocks.0.ffn.2"])
    assert foreign["tokens.1.blocks.0.ffn.2"].dtype is torch.bfloat16


def test_a_finished_run_is_one_file_and_tells_what_its_steps_told(tmp_path):
    found = recorded.session(tmp_path)
    given = recorded.run(found, finish=False)
    before = gather(found, ROLE)
    told = [(before.amax(LAYER), before.histogram(LAYER), *before.columns(LAYER, half)) for half in (0, 1)]
    assert files(found) == ["run.json", *(f"step_{step:04d}.safetensors" for step in range(4))]
    recorded.run(found, finish=False, prompt="p")   # another go at it, cut short after as many steps
    writer = found.begin_run(ROLE, SUBJECT, RunFacts(prompt_id="p", steps=4, cfg=3.5), POINTS)
    recorded.write_steps(writer, range(4), 1)
    writer.finish()
    assert [run.number for run in found.runs()] == [3] and files(found, 3) == ["run.json", "run.safetensors"] and not files(found)
    after = gather(found, ROLE)
    for half in (0, 1):
        amax, bins, squares, count = told[half]
        assert torch.equal(after.amax(LAYER), amax) and torch.equal(after.histogram(LAYER).sum(), bins.sum())
        assert torch.equal(after.columns(LAYER, half)[0], squares) and after.columns(LAYER, half)[1] == count
    assert torch.equal(after.amax(LAYER).max(), torch.stack([x[POINT].abs().max() for x in given.values()]).max().float())


def test_a_run_that_was_not_finished_counts_with_the_steps_it_has(tmp_path):
    found = recorded.session(tmp_path)
    given = recorded.run(found, finish=False, expected=20)
    reopened = Session.open(found.folder)
    assert [(run.finished, run.steps) for run in reopened.runs(ROLE)] == [(False, (0, 1, 2, 3))]
    expected, count = recorded.mean64(given.values(), POINT)
    mean, counted = gather(reopened, ROLE).columns(LAYER)
    assert counted == count
    torch.testing.assert_close(mean, expected, rtol=2**-24 * count, atol=0)   # float32 sums of `count` squares
    assert reopened.notices() == ["1 runs were not finished: their steps count"]


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, 2000, -1])
def test_a_step_file_that_was_cut_short_is_left_out_and_told(tmp_path, kept):
    found = recorded.session(tmp_path)
    recorded.run(found, finish=False)
    path = Path(found.folder) / "runs" / f"0001_{ROLE}" / "step_0003.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    assert found.runs()[0].steps == (0, 1, 2)
    assert found.notices()[0] == "1 files of steps are half-written or damaged, and are left out"
    assert gather(found, ROLE).notices == [f"{ROLE}: 1 files of steps are half-written or damaged, and are left out"]


def test_a_stop_in_the_middle_of_a_step_leaves_the_steps_before(tmp_path, monkeypatch):
    found = recorded.session(tmp_path)
    writer = found.begin_run(ROLE, SUBJECT, RunFacts(steps=4), POINTS)
    recorded.write_steps(writer, range(2), 1)
    asked, fill = [], records.write

    def write(path, specs, give, metadata):
        def stop(name):
            asked.append(name)
            if len(asked) == 5:
                raise KeyboardInterrupt
            return give(name)
        return fill(path, specs, stop, metadata)

    monkeypatch.setattr(records, "write", write)
    with pytest.raises(KeyboardInterrupt):
        recorded.write_steps(writer, [2], 1)
    assert files(found) == ["run.json", "step_0000.safetensors", "step_0001.safetensors", "step_0002.safetensors.new"]
    assert found.runs()[0].steps == (0, 1) and "1 files of steps are half-written" in found.notices()[0]


@pytest.mark.parametrize("stopped", ["merge_steps", "_tell", "remove"])
def test_a_stop_while_a_run_is_finished_loses_nothing(tmp_path, monkeypatch, stopped):
    found = recorded.session(tmp_path)
    recorded.run(found, finish=False)
    whole = gather(found, ROLE).columns(LAYER)
    writer = found.begin_run(ROLE, SUBJECT, RunFacts(prompt_id="p", steps=4, cfg=3.5), POINTS)
    recorded.write_steps(writer, range(4), 1)

    def stop(*_, **__):
        raise KeyboardInterrupt
    if stopped == "_tell":
        monkeypatch.setattr(run_writer.RunWriter, "_tell", stop)
    else:
        monkeypatch.setattr(*((run_writer, "merge_steps") if stopped == "merge_steps" else (os, "remove")), stop)
    with pytest.raises(KeyboardInterrupt):
        writer.finish()
    monkeypatch.undo()
    mean, count = gather(found, ROLE).columns(LAYER)
    assert count == whole[1] and torch.equal(mean, whole[0])
    assert len(found.runs()) == 1


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on Windows")
def test_a_killed_process_loses_at_most_the_step_it_was_writing(tmp_path):
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import conftest
from pathlib import Path
from wan22_master.tests.engine.calibration import recorded
found = recorded.session(Path({str(tmp_path)!r}))
writer = found.begin_run(recorded.ROLE, recorded.SUBJECT, recorded.RunFacts(steps=10**6), recorded.POINTS)
print("begun", flush=True)
for step in range(10**6):
    recorded.write_steps(writer, [step], 1, lambda seed: recorded.inputs(seed, 3000))
    print(step, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        try:
            done = [child.stdout.readline() for _ in range(8)]
            time.sleep(0.003)
        finally:
            child.kill()
        done += child.stdout.readlines()
    finished = sum(line.strip().isdigit() for line in done)
    found = Session.open(tmp_path / "calibration" / "one")
    steps = found.runs()[0].steps
    assert steps == tuple(range(len(steps))) and finished >= 7 and finished <= len(steps) <= finished + 1
    assert gather(found, ROLE).columns(LAYER)[1] == len(steps) * 2 * 3000


def test_a_repeated_prompt_counts_once_when_the_new_run_is_finished(tmp_path):
    found = recorded.session(tmp_path)
    recorded.run(found, "p", seed=1)
    recorded.run(found, "q", seed=2)
    recorded.run(found, "p", seed=3, finish=False)
    assert [run.number for run in found.runs()] == [1, 2]
    assert found.notices() == ["1 runs of a prompt that was run again do not count"]
    given = recorded.run(found, "p", seed=4)
    assert [run.number for run in found.runs()] == [2, 4] and not files(found, 1) and not files(found, 3)
    other = recorded.run(found, "p", seed=5, role="low_noise")
    assert [run.number for run in found.runs(ROLE)] == [2, 4] and len(found.runs()) == 3
    assert gather(found, "low_noise").columns(LAYER)[1] == recorded.mean64(other.values(), POINT)[1]
    assert gather(found, ROLE).columns(LAYER)[1] == 2 * recorded.mean64(given.values(), POINT)[1]


def test_runs_without_a_prompts_name_are_none_of_anothers(tmp_path):
    found = recorded.session(tmp_path)
    recorded.run(found, "", seed=1)
    recorded.run(found, "", seed=2)
    assert len(found.runs()) == 2


def test_a_run_without_a_step_leaves_nothing(tmp_path):
    found = recorded.session(tmp_path)
    recorded.run(found, steps=())
    assert found.runs() == [] and not files(found)
    with pytest.raises(RecipeError, match="expected recorded runs"):
        gather(found, ROLE)


def test_facts_and_subject_come_back(tmp_path):
    found = recorded.session(tmp_path)
    facts = RunFacts("id", "a cat\n\"ü\"", "bad", 2**60, 4, 3.5, 832, 480, 81, "cat.png", "euler", "merge.safetensors")
    subject = replace(SUBJECT, loras=(("a.safetensors", "ab" * 32, 0.5),))
    found.begin_run(ROLE, subject, facts, POINTS)
    again = Session.open(found.folder)
    assert again.subject(ROLE) == subject and again.subject("low_noise") is None and again.name == "one"
    assert again.runs()[0].facts == facts and again.runs()[0].subject == subject and again.runs()[0].points == POINTS
    assert RunFacts.from_json({**facts.to_json(), "of a later version": 1}) == facts


def test_another_base_is_refused_unless_it_is_allowed(tmp_path):
    found = recorded.session(tmp_path)
    recorded.run(found)
    other = replace(SUBJECT, base="header:2 name:other.safetensors", base_name="other.safetensors")
    with pytest.raises(RecipeError, match=r"one: high_noise: .* found one of base\.safetensors, another base"):
        found.begin_run(ROLE, other, RunFacts(), POINTS)
    assert len(found.runs()) == 1
    found.begin_run(ROLE, other, RunFacts(), POINTS, allow_other_base=True)
    assert found.subject(ROLE) == SUBJECT


@pytest.mark.parametrize(("held", "role", "said"), [
    ("model", "high_noise", "expected a model of one file, as the session has runs of, found high_noise of a pair"),
    ("low_noise", "model", "expected an expert of a pair, as the session has runs of low_noise, found a model of one file")])
def test_a_model_of_one_file_and_a_pair_are_not_one_session_unless_it_is_allowed(tmp_path, held, role, said):
    found = recorded.session(tmp_path)
    recorded.run(found, role=held)
    with pytest.raises(RecipeError) as error:
        found.begin_run(role, SUBJECT, RunFacts(), POINTS)
    assert str(error.value) == f"session one: {role}: {said}; take a new session, or turn allow_other_base on"
    assert found.subject(role) is None and found.compare(role, SUBJECT)[0] == [said] and found.compare(held, SUBJECT)[0] == []
    found.begin_run(role, SUBJECT, RunFacts(), POINTS, allow_other_base=True)
    assert found.subject(role) == SUBJECT


def test_the_experts_of_a_pair_are_one_session(tmp_path):
    found = recorded.session(tmp_path)
    recorded.run(found, role="high_noise")
    assert found.compare("low_noise", replace(SUBJECT, base="header:2 name:low"))[0] == []


def test_sessions_are_listed_by_name_and_opened_again_by_create(tmp_path):
    root = tmp_path / "calibration"
    assert sessions(root) == []
    for name in ("b", "a b ü"):
        recorded.session(tmp_path, name)
    (root / "plans.json").write_text("{}")
    (root / "folder of another").mkdir()
    recorded.run(Session.create(root, " b "))
    assert sessions(root) == ["a b ü", "b"] and len(Session.create(root, "b").runs()) == 1


@pytest.mark.parametrize("name", ["../out", "a/b", "a\\b", "", " ", "..", ".", "nul", "a:b", "x" * 300, "a\nb", "C:\\x", "/etc"])
def test_a_name_that_leads_out_or_that_some_system_forbids_is_refused(tmp_path, name):
    with pytest.raises(PlanError):
        Session.create(tmp_path / "calibration", name)
    assert sorted(tmp_path.iterdir()) in ([], [tmp_path / "calibration"])


@pytest.mark.parametrize("text", ["", "[]", '{"version": 2, "experts": {}}', "{}"])
def test_a_folder_that_is_no_session_is_refused(tmp_path, text):
    (tmp_path / "session.json").write_text(text)
    with pytest.raises(RecipeError, match="expected a session"):
        Session.open(tmp_path)


def test_a_run_that_cannot_be_read_is_told_and_the_others_count(tmp_path):
    found = recorded.session(tmp_path)
    for number in range(3):
        recorded.run(found, f"p{number}", seed=number)
    runs = Path(found.folder) / "runs"
    (runs / f"0001_{ROLE}" / "run.json").unlink()
    told = json.loads((runs / f"0002_{ROLE}" / "run.json").read_text())
    (runs / f"0002_{ROLE}" / "run.json").write_text(json.dumps({**told, "version": 9}))
    assert [run.number for run in found.runs()] == [3]
    assert found.notices() == [f"1 runs are left out: run.json is {what}" for what in ("missing or damaged", "of version 9")]


def test_clear_forgets_runs_and_subjects_and_keeps_what_was_made(tmp_path):
    found = recorded.session(tmp_path)
    recorded.run(found)
    (Path(found.folder) / "high_noise_summary.json").write_text("{}")
    found.clear()
    assert found.runs() == [] and found.subject(ROLE) is None and sessions(Path(found.folder).parent) == ["one"]
    assert (Path(found.folder) / "high_noise_summary.json").exists()
    recorded.run(found)
    assert len(found.runs()) == 1


def test_a_run_is_no_step(tmp_path):
    found = recorded.session(tmp_path)
    recorded.run(found)
    with pytest.raises(HeaderError, match="expected a record of one step, found 4"):
        StepRecord.load(found.runs()[0].files[0].path)


def test_two_parts_of_one_prompts_schedule_count_beside_each_other(tmp_path):
    found = recorded.session(tmp_path)
    for part in ("1 to 0.9", "0.9 to 0.8", "1 to 0.9"):
        writer = found.begin_run(ROLE, SUBJECT, RunFacts(prompt_id="p", steps=2, part=part), POINTS)
        recorded.write_steps(writer, range(2), 1)
        writer.finish()
    assert [(run.number, run.facts.part) for run in found.runs()] == [(2, "0.9 to 0.8"), (3, "1 to 0.9")]


def test_a_run_whose_facts_cannot_be_read_at_its_end_keeps_its_steps(tmp_path, monkeypatch):
    found = recorded.session(tmp_path)
    writer = found.begin_run(ROLE, SUBJECT, RunFacts(prompt_id="p", steps=2), POINTS)
    recorded.write_steps(writer, range(2), 1)
    (Path(writer.folder) / "run.json").write_text("{")                     # as another program may hold it
    writer.finish()
    assert [path.name for path in sorted(Path(writer.folder).glob("step_*"))] == ["step_0000.safetensors", "step_0001.safetensors"]


def test_a_restart_moves_the_runs_aside_once(tmp_path):
    found = recorded.session(tmp_path)
    recorded.run(found)
    before = files(found)
    found.clear()
    found.clear()                                  # of nothing: what lies aside stays
    assert not found.runs() and sorted(path.name for path in (Path(found.folder) / "runs_before").glob("0001_*/*")) == before


def test_kept_tokens_hold_no_more_memory_than_their_own():
    recorder = Recorder(POINTS, seed=1, tokens=2)
    recorder.begin(1.0, ("cond",))
    recorder.see(POINT, torch.randn(1, 64, 6))
    kept = recorder.take(0).tokens[POINT]
    assert kept.untyped_storage().nbytes() == kept.numel() * kept.element_size() == 2 * 6 * 4
