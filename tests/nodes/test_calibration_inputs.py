"""A session on the wire: which experts it serves, and whether weights that were made of it still belong to it."""
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from wan22_master.engine.bases.source import open_source
from wan22_master.engine.calibration import sensitivity_json
from wan22_master.engine.calibration.gather import gather
from wan22_master.engine.calibration.points import points_of
from wan22_master.engine.calibration.sensitivity_json import WEIGHTS, Sensitivity, path_of
from wan22_master.engine.calibration.session import RunFacts, Session
from wan22_master.engine.calibration.statistics import Recorder
from wan22_master.engine.calibration.subject import Subject, sample_digest
from wan22_master.engine.errors import RecipeError, SourceError
from wan22_master.engine.synthetic import Sizes, write_model
from wan22_master.nodes import calibration_inputs, freshness
from wan22_master.nodes.handles import Calibration

POINTS = points_of(["blocks.0.ffn.0", "blocks.0.ffn.2"])
ROLES = ("high_noise", "low_noise")


SUBJECT = Subject("header:1 name:a", "a")


def record(session: Session, role: str, prompt: str, subject: Subject = SUBJECT) -> None:
    writer = session.begin_run(role, subject, RunFacts(prompt_id=prompt, steps=2, cfg=3.5), POINTS, allow_other_base=True)
    recorder = Recorder(POINTS, seed=writer.seed, tokens=writer.tokens)
    for step in range(2):
        recorder.begin(0.9, ("uncond", "cond"))
        for point in POINTS:
            recorder.see(point, torch.randn(2, 9, 16))
        writer.write_step(recorder.take(step))
    writer.finish()


@pytest.fixture
def session(tmp_path) -> Session:
    return Session.create(tmp_path, "calib_01")


def on_wire(session: Session) -> Calibration:
    return Calibration(session.folder, session.name)


def make_weights(session: Session, role: str, weighed: int = 2) -> None:
    said = Sensitivity("a", "t2v", 1, session.name, gather(session, role).state, 2.0, weighed)
    sensitivity_json.write(session.folder, role, said, {})
    if weighed:
        open(path_of(session.folder, role, WEIGHTS), "w").close()


def test_experts_with_runs_give_inputs_and_a_session_without_any_is_refused(session):
    with pytest.raises(RecipeError, match="expected runs of high_noise or low_noise, found none; sample prompts"):
        calibration_inputs.inputs_of(on_wire(session), ROLES)
    record(session, "high_noise", "one")
    record(session, "high_noise", "two")
    found = calibration_inputs.inputs_of(on_wire(session), ROLES, 3.0)
    assert set(found) == {"high_noise"} and (found["high_noise"].prompts, found["high_noise"].margin) == (2, 3.0)
    assert found["high_noise"].of("blocks.0.ffn.0", 16).tokens.shape[1] == 16
    assert found["high_noise"].of("blocks.0.ffn.0", 32) is None and found["high_noise"].of("blocks.9.ffn.0", 16) is None
    with pytest.raises(RecipeError, match="expected runs of model, found high_noise"):
        calibration_inputs.inputs_of(on_wire(session), ("model",))


def test_every_run_that_counts_is_held_against_the_model(session, monkeypatch):
    mine, plan = Subject("sample:1", "a"), SimpleNamespace(experts=[SimpleNamespace(role="high_noise")], recipe=None)
    monkeypatch.setattr(calibration_inputs, "subject_of", lambda expert, recipe: mine)
    record(session, "high_noise", "one", mine)
    record(session, "high_noise", "two", replace(mine, loras=(("l", "1", 1.0),), recipe="r"))
    assert calibration_inputs.checked(on_wire(session), plan, ROLES, allow=False) == [
        "high_noise: 1 of 2 runs were recorded with other LoRAs: l at 1 is in what was recorded, not in this merge"]
    record(session, "high_noise", "three", Subject("sample:2", "b"))
    said = "high_noise: 1 of 3 runs: expected a record of a, found one of b, another base"
    with pytest.raises(SourceError) as error:
        calibration_inputs.checked(on_wire(session), plan, ROLES, allow=False)
    assert str(error.value) == (f"calibration calib_01: {said}; calibrate this model, or turn allow_other_base on where the node "
                                "has it")
    assert calibration_inputs.checked(on_wire(session), plan, ROLES, allow=True)[0] == said
    record(session, "high_noise", "two", mine)
    record(session, "high_noise", "three", mine)   # what was run again does not count
    assert calibration_inputs.checked(on_wire(session), plan, ROLES, allow=False) == []


def test_weights_must_be_there_and_of_what_the_session_holds_now(session):
    record(session, "high_noise", "one")
    with pytest.raises(RecipeError, match="has no weights of high_noise yet: run Sensitivity"):
        calibration_inputs.weights_of(on_wire(session), ROLES)
    make_weights(session, "high_noise")
    found, lines = calibration_inputs.weights_of(on_wire(session), ROLES)
    assert found == {"high_noise": path_of(session.folder, "high_noise", WEIGHTS)}
    assert "columns of 2 layers weighed" in lines[0] and "low_noise: calibration calib_01 has no run of it" in lines[1]
    record(session, "high_noise", "two")
    with pytest.raises(RecipeError, match="has grown since the weights of high_noise were made: run Sensitivity on it again"):
        calibration_inputs.weights_of(on_wire(session), ROLES)


def test_weights_of_another_base_are_refused(session, tmp_path):
    record(session, "high_noise", "one")
    paths = {}
    for seed in ("one", "two"):
        paths[seed] = tmp_path / f"{seed}.safetensors"
        write_model(paths[seed], Sizes(dim=128, ffn=128, blocks=1), seed)
    with open_source(paths["one"]) as source:
        said = Sensitivity("a", "t2v", 1, session.name, gather(session, "high_noise").state, 2.0, 2, sample_digest(source))
    sensitivity_json.write(session.folder, "high_noise", said, {})
    open(path_of(session.folder, "high_noise", WEIGHTS), "w").close()
    assert calibration_inputs.weights_of(on_wire(session), ROLES, {"high_noise": str(paths["one"])})[0]
    with pytest.raises(SourceError, match=r"expected weights made with two.safetensors, found those of another base"):
        calibration_inputs.weights_of(on_wire(session), ROLES, {"high_noise": str(paths["two"])})


def test_weights_that_help_nowhere_are_not_used_and_missing_ones_are_an_error(session):
    record(session, "high_noise", "one")
    make_weights(session, "high_noise", weighed=0)
    found, lines = calibration_inputs.weights_of(on_wire(session), ("high_noise",))
    assert not found and "helps in no layer" in lines[0]
    said = Sensitivity("a", "t2v", 1, session.name, gather(session, "high_noise").state, 2.0, 1)
    sensitivity_json.write(session.folder, "high_noise", said, {})
    with pytest.raises(RecipeError, match="has no weights of high_noise yet"):
        calibration_inputs.weights_of(on_wire(session), ("high_noise",))


def test_a_node_is_stale_once_the_session_grows_or_its_weights_are_made_anew(session):
    record(session, "high_noise", "one")
    for change in (lambda: record(session, "high_noise", "two"), lambda: make_weights(session, "high_noise")):
        calibration_inputs.remember("node", on_wire(session))
        before = freshness.token("node")
        assert freshness.token("node") == before
        change()
        assert freshness.token("node") == before + 1
