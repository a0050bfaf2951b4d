"""What a session says of itself, recorded here through the recorder and written as it is while sampling."""
import pytest
from wan22_master.engine.calibration import log
from wan22_master.engine.calibration.by_pass import by_pass
from wan22_master.engine.calibration.gather import gather
from wan22_master.engine.calibration.session import Session
from wan22_master.engine.calibration.summary import of_log, of_session, summarize
from wan22_master.engine.calibration.tell import about, joined
from wan22_master.tests.engine.calibration.small_session import record


def said(session: Session) -> list[str]:
    roles = dict.fromkeys(run.role for run in session.runs())
    gathered = {role: gather(session, role) for role in roles}
    return about(session, gathered, {role: by_pass(each) for role, each in gathered.items()})


@pytest.fixture
def session(tmp_path) -> Session:
    return Session.create(tmp_path, "calib_01")


def test_a_session_says_how_much_was_recorded_and_on_what(session):
    for number in range(2):
        record(session, "high_noise", [1.0, 2.0], prompt=f"p{number}")
    assert ("high_noise: 2 runs of 2 prompts, 4 cond and 4 uncond calls, sigma 1 to 0.9, 4 layers; recorded on Q8_0 weights"
            in said(session))


def test_few_runs_are_told_until_there_are_eight(session):
    for number in range(8):
        assert any("fewer than 8 runs" in line for line in said(session)) == (number > 0)
        record(session, "model", [1.0], prompt=f"p{number}")
    assert not any("fewer than 8 runs" in line for line in said(session))


def test_layers_without_input_are_named(session):
    record(session, "model", [1.0], prompt="p")
    assert "model: 1 layers saw no input and get no scale: blocks.0.ffn.2" in said(session)


def test_a_session_of_one_expert_is_one_sided_and_a_lone_model_is_not(session, tmp_path):
    record(session, "low_noise", [1.0], prompt="p")
    assert any(line.startswith("high_noise: nothing was recorded, so the session is one-sided") for line in said(session))
    record(session, "high_noise", [1.0], prompt="p")
    assert not any("one-sided" in line for line in said(session))
    lone = Session.create(tmp_path, "lone")
    record(lone, "model", [1.0], prompt="p")
    assert not any("one-sided" in line for line in said(lone))


def test_an_expert_that_is_known_otherwise_is_not_missed(session):
    record(session, "low_noise", [1.0], prompt="p")
    gathered = {"low_noise": gather(session, "low_noise")}
    passes = {"low_noise": by_pass(gathered["low_noise"])}
    told = ["\n".join(about(session, gathered, passes, known)) for known in ((), ("high_noise",))]
    assert ["one-sided" in text for text in told] == [True, False]


def test_what_holds_for_both_experts_is_one_line_at_the_place_of_the_first():
    assert joined(["high_noise: a", "high_noise: b", "session: c", "low_noise: b", "low_noise: d", "model: b"]) == [
        "high_noise: a", "high_noise and low_noise: b", "session: c", "low_noise: d", "model: b"]
    assert joined(["low_noise: a: b", "high_noise: a: b"]) == ["high_noise and low_noise: a: b"]


def test_a_session_of_both_experts_says_once_what_it_says_of_both(session):
    for role in ("high_noise", "low_noise"):
        record(session, role, [1.0], prompt="p")
    lines = joined(said(session))
    assert sum("fewer than 8 runs" in line for line in lines) == 1 and len(lines) < 0.6 * len(said(session))   # all but figures


def test_a_session_that_saw_cond_alone_says_so(session):
    record(session, "model", [1.0], prompt="p", parts=("cond",))
    assert any("only cond was seen" in line for line in said(session))
    record(session, "model", [1.0], prompt="other")
    assert not any("only cond was seen" in line for line in said(session))


def test_inputs_that_are_not_finite_are_told_with_their_layers(session):
    record(session, "model", [1.0, 1.0], prompt="p", spoil=(1, "blocks.0.ffn.0"))
    [line] = [line for line in said(session) if "not finite" in line and "model:" in line]
    assert "1 inputs at most were not finite and are left out, in 1 layers: blocks.0.ffn.0" in line


@pytest.mark.parametrize(("last", "verdict"), [(2.0, "has settled: in the last quarter of the runs the largest input rose by 0.0%"),
                                               (2.08, "has settled"), (2.2, "still rises"), (1.0, "rose by 0.0% at most")])
def test_amax_has_settled_when_the_last_quarter_of_the_runs_raised_it_little(session, last, verdict):
    for number, size in enumerate([1.0, 2.0, 1.5]):
        record(session, "model", [size], prompt=f"p{number}")
    record(session, "model", [last], prompt="last")
    assert any(verdict in line for line in said(session))


def test_three_runs_do_not_tell_whether_amax_has_settled(session):
    for number in range(3):
        record(session, "model", [1.0 + number], prompt=f"p{number}")
    assert "model: whether amax has settled can be told from 4 runs on" in said(session)


def test_the_log_of_a_session_has_its_summary_but_for_six_decimals(session, tmp_path):
    (tmp_path / "a.log").write_text("".join(record(session, "model", [1.0, 2.0, 1.5], prompt=f"p{number}") for number in range(3)))
    logged, exact = summarize(of_log(log.read(tmp_path / "a.log"))), summarize(of_session(by_pass(gather(session, "model"))))
    assert [row["layer"] for row in logged["layers"]] == [row["layer"] for row in exact["layers"]]
    for mine, other in zip(exact["layers"], logged["layers"], strict=True):
        assert mine["count"] == other["count"] == 9
        for column in ("amax_min", "amax_max", "amax_mean", "amax_p99_9", "scale_max", "scale_p50"):
            assert mine[column] == pytest.approx(other[column], abs=0.5e-6), column   # half of the sixth decimal
