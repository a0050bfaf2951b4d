"""When a calibration has settled: by sessions on disk, of layers with given largest inputs."""
import pytest
import torch
from wan22_master.engine.calibration.session import RunFacts, Session
from wan22_master.engine.calibration.statistics import Recorder
from wan22_master.engine.calibration.subject import Subject
from wan22_master.nodes.calibration_settled import has_settled

SUBJECT = Subject("name:base", "base")


def record(session: Session, amax: dict[str, float], *, finished: bool = True, role: str = "high_noise") -> None:
    """One run of one step."""
    number = len(session.runs()) + 1
    writer = session.begin_run(role, SUBJECT, RunFacts(prompt_id=str(number), steps=1), {layer: (layer,) for layer in amax})
    recorder = Recorder(amax, seed=0, tokens=0)
    recorder.begin(1.0, ("cond",))
    for layer, value in amax.items():
        recorder.see(layer, torch.tensor([[value, -0.5 * value]]))
    writer.write_step(recorder.take(0))
    if finished:
        writer.finish()


def session_of(folder, *runs: dict[str, float]) -> Session:
    session = Session.create(folder, "s")
    for amax in runs:
        record(session, amax)
    return session


@pytest.mark.parametrize(("values", "settled"), [
    ((10, 1, 1), True), ((10, 11, 1), False), ((10, 1, 11), False), ((10, 10.05, 10.09), True), ((10, 10.11, 1), False),
    ((1, 10, 2, 3), True), ((1, 2, 10, 3), False)])
def test_nothing_may_have_risen_over_the_last_two_runs_by_more_than_a_hundredth(tmp_path, values, settled):
    session = session_of(tmp_path, *({"one": value, "other": 5.0} for value in values))
    assert has_settled(session, "high_noise", 2, 0.01) is settled


def test_one_run_more_than_asked_is_needed_and_unfinished_ones_and_other_experts_do_not_count(tmp_path):
    session = session_of(tmp_path, {"one": 3.0}, {"one": 3.0})
    record(session, {"one": 3.0}, finished=False)
    record(session, {"one": 3.0}, role="low_noise")
    assert not has_settled(session, "high_noise", 2, 0.01) and not has_settled(session, "low_noise", 1, 0.01)
    record(session, {"one": 3.0})
    assert has_settled(session, "high_noise", 2, 0.01)


def test_a_layer_that_only_the_last_runs_saw_has_risen(tmp_path):
    session = session_of(tmp_path, {"one": 3.0}, {"one": 3.0, "late": 0.1}, {"one": 3.0, "late": 0.1})
    assert not has_settled(session, "high_noise", 2, 0.01)
    assert has_settled(session, "high_noise", 1, 0.01)
