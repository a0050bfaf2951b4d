"""What all runs tell together, against float64 of everything that was put in; halves that share nothing."""
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from wan22_master.engine.calibration import tensors
from wan22_master.engine.calibration.gather import gather
from wan22_master.engine.calibration.session import RunFacts, Session
from wan22_master.engine.errors import RecipeError
from wan22_master.tests.engine.calibration import recorded
from wan22_master.tests.engine.calibration.recorded import POINTS, ROLE, SUBJECT, WIDTH

LAYER, POINT = "blocks.0.self_attn.v", "blocks.0.self_attn.q"


def rows_of(given, point=POINT):
    return torch.cat([x[point].float().reshape(-1, WIDTH[point]) for x in given])


def as_set(rows):
    return {tuple(row) for row in rows.tolist()}


@pytest.mark.parametrize("runs", [1, 2, 3])
def test_two_sessions_opened_one_after_the_other_merge(tmp_path, runs):
    given = []
    for number in range(runs):
        again = Session.create(tmp_path / "calibration", "one")
        given.append(recorded.run(again, f"p{number}", seed=number))
    found = gather(Session.open(again.folder), ROLE)
    inputs = [x for each in given for x in each.values()]
    for point, layers in POINTS.items():
        expected, count = recorded.mean64(inputs, point)
        for layer in layers:
            mean, counted = found.columns(layer)
            assert counted == count and mean.dtype is torch.float64
            torch.testing.assert_close(mean, expected, rtol=2**-24 * 40, atol=0)   # float32 sums of 40 squares
            assert torch.equal(found.peaks(layer), rows_of(inputs, point).abs().amax(0))
            assert found.amax(layer).tolist() == [part.abs().max().item() for x in inputs for part in x[point].float()]
            assert found.rows(layer).tolist() == [40] * len(found.calls)
            assert found.places(layer).tolist() == list(range(len(found.calls)))
    wanted = [(number + 1, step) for number in range(runs) for step in range(4) for _ in "ab"]
    assert [(number, step) for number, step, _ in found.calls] == wanted
    assert found.layers() == [layer for layers in POINTS.values() for layer in layers] and found.notices == []


@pytest.mark.parametrize("runs", [1, 2, 3])
@pytest.mark.parametrize("finish", [True, False])
def test_halves_share_no_vector_and_are_the_whole(tmp_path, runs, finish):
    found = recorded.session(tmp_path)
    given = [recorded.run(found, f"p{number}", seed=number, finish=finish) for number in range(runs)]
    told = gather(found, ROLE)
    if runs == 1:
        parts = [[x for step, x in given[0].items() if step % 2 == half] for half in (0, 1)]
    else:
        parts = [[x for place, each in enumerate(given) if place % 2 == half for x in each.values()] for half in (0, 1)]
    for half in (0, 1):
        mean, count = told.columns(LAYER, half)
        expected, expected_count = recorded.mean64(parts[half], POINT)
        assert count == expected_count
        torch.testing.assert_close(mean, expected, rtol=2**-24 * 40, atol=0)   # float32 sums of 40 squares
        assert as_set(told.tokens(LAYER, half)) <= as_set(rows_of(parts[half]))
    first, second = (told.tokens(LAYER, half) for half in (0, 1))
    assert len(first) and len(second) and not as_set(first) & as_set(second)
    assert as_set(told.tokens(LAYER)) == as_set(first) | as_set(second)
    assert told.tokens(LAYER).dtype is torch.float32


def test_a_token_that_repeats_is_in_one_half_alone(tmp_path):
    """As the text, the same in each step, and its padding, the same in each place."""
    found = recorded.session(tmp_path)
    writer = found.begin_run(ROLE, SUBJECT, RunFacts(steps=4, cfg=1.0), POINTS)
    text = torch.randn(1, 8, 6).repeat(2, 5, 1)
    recorded.write_steps(writer, range(4), 1, lambda seed: {POINT: text})
    told = gather(found, ROLE)
    first, second = (as_set(told.tokens(LAYER, half)) for half in (0, 1))
    assert first and not first & second and first | second <= as_set(text.reshape(-1, 6))
    assert told.columns(LAYER, 0)[1] == told.columns(LAYER, 1)[1] == 2 * 80


def test_tokens_stay_bounded_and_every_run_keeps_some(tmp_path):
    found, most = recorded.session(tmp_path), 0
    for number in range(9):
        recorded.run(found, f"p{number}", seed=number, steps=range(3))
        told = gather(found, ROLE)
        counts = [len(told.tokens(layer)) for layer in (LAYER, "blocks.0.ffn.2")]
        assert counts[0] == counts[1] <= 2 * 128
        most = max(most, counts[0])
    assert most > 128   # so that the thinning was seen
    for run in found.runs():
        held = [sum(run.files[0].of("tokens", point, half).shape[0] for half in (0, 1)) for point in POINTS]
        assert min(held) > 0 and max(held) <= 128 // 2


def test_one_run_keeps_as_many_tokens_as_a_session_aims_at_from_all_its_steps(tmp_path):
    found = recorded.session(tmp_path)
    given = recorded.run(found, steps=range(10, 17))
    told = gather(found, ROLE).tokens(LAYER)
    assert len(told) == 128
    for x in given.values():
        assert 128 // 7 <= len([row for row in told.tolist() if tuple(row) in as_set(rows_of([x]))]) <= 128 // 7 + 1


@pytest.mark.parametrize("expected", [2, 0])
def test_more_steps_than_were_expected_keep_no_more_tokens(tmp_path, expected):
    found = recorded.session(tmp_path)
    recorded.run(found, steps=range(12), expected=expected, finish=False)
    told = gather(found, ROLE)
    assert 0 < len(told.tokens(LAYER)) <= 128 and len(told.tokens(LAYER, 0)) and len(told.tokens(LAYER, 1))


def test_a_prompt_that_is_run_again_gets_the_tokens_of_its_earlier_run(tmp_path):
    found = recorded.session(tmp_path)
    recorded.run(found, "p", seed=1)
    budgets = [found.begin_run(ROLE, SUBJECT, RunFacts(prompt_id=name), POINTS).budget for name in ("p", "q", "")]
    assert budgets == [128, 64, 64]


@settings(max_examples=6, deadline=None)
@given(counts=some.lists(some.integers(1, 3), min_size=1, max_size=4))
def test_layers_that_a_run_did_not_know_are_unseen_there(tmp_path_factory, counts):
    found = recorded.session(tmp_path_factory.mktemp("s"))
    only = {POINT: (POINT,)}
    given = []
    for number, steps in enumerate(counts):
        writer = found.begin_run(ROLE, SUBJECT, RunFacts(prompt_id=f"p{number}", steps=steps), only if number % 2 else POINTS)
        look = (lambda seed: {POINT: recorded.inputs(seed)[POINT]}) if number % 2 else recorded.inputs
        given.append(recorded.write_steps(writer, range(steps), number, look))
        writer.finish()
    told = gather(found, ROLE)
    assert told.columns(POINT)[1] == 80 * sum(counts) and told.columns(LAYER)[1] == 80 * sum(counts[::2])
    assert len(told.calls) == 2 * sum(counts) and len(told.amax(LAYER)) == 2 * sum(counts[::2])
    assert [told.calls[place][0] for place in told.places(LAYER).tolist()] == [
        number + 1 for number, steps in enumerate(counts) if not number % 2 for _ in range(2 * steps)]


def test_inputs_that_were_not_finite_are_counted_and_poison_nothing(tmp_path):
    found = recorded.session(tmp_path)
    def look(seed):
        given = recorded.inputs(seed)
        if seed % 1000 == 2:
            given[POINT][0, 5, 3] = torch.nan
        return given
    writer = found.begin_run(ROLE, SUBJECT, RunFacts(steps=4), POINTS)
    given = recorded.write_steps(writer, range(4), 1, look)
    writer.finish()
    told = gather(found, ROLE)
    assert told.notices == [f"{ROLE}: 1 inputs held inf, NaN or squares beyond float32, and are in no sum"]
    assert told.left_out(LAYER) == 1 and told.left_out("blocks.0.ffn.2") == 0
    fine = [part[POINT][None] for part in ({POINT: x[POINT][place]} for x in given.values() for place in (0, 1))
            if part[POINT].isfinite().all()]
    assert told.amax(LAYER).tolist() == [x.abs().max().item() for x in fine]
    rows = torch.cat([x[0].double() for x in fine])
    torch.testing.assert_close(told.columns(LAYER)[0], rows.square().mean(0), rtol=2**-24 * 40, atol=0)
    assert told.tokens(LAYER).isfinite().all() and told.places(LAYER).tolist() == [0, 1, 2, 3, 5, 6, 7]


def test_outliers_are_channels_beyond_four_times_the_median(tmp_path):
    found = recorded.session(tmp_path)
    size = {POINT: torch.tensor([1.0, 1.0, 1.0, 1.0, 3.5, 5.0]), "blocks.0.ffn.2": torch.ones(10)}
    def look(seed):
        return {point: torch.ones(2, 40, WIDTH[point]) * size[point] for point in POINTS}
    writer = found.begin_run(ROLE, SUBJECT, RunFacts(steps=1), POINTS)
    recorded.write_steps(writer, [0], 1, look)
    writer.finish()
    told = gather(found, ROLE)
    assert told.outliers(LAYER) == (1 / 6, 1 / 6) and told.outliers("blocks.0.ffn.2") == (0.0, 0.0)


def test_the_state_changes_with_what_was_recorded_and_only_then(tmp_path):
    found, states = recorded.session(tmp_path), []
    for finish in (False, True):
        recorded.run(found, "p", seed=1, finish=finish)
        states.append(gather(found, ROLE).state)
    recorded.run(found, "q", seed=2, role="low_noise")
    assert gather(found, ROLE).state == gather(Session.open(found.folder), ROLE).state == states[1]
    recorded.run(found, "q", seed=2)
    states.append(gather(found, ROLE).state)
    recorded.run(found, "q", seed=3)
    states.append(gather(found, ROLE).state)
    assert len(set(states)) == 4
    others = [recorded.session(tmp_path, name) for name in ("same", "other")]
    for seed, other in enumerate(others):
        recorded.run(other, "p", seed=seed)
    one, two = (gather(other, ROLE) for other in others)
    assert one.runs[0].files[0].stored.sha256 == two.runs[0].files[0].stored.sha256 and one.state != two.state


def test_tokens_are_read_for_one_layer_at_a_time(tmp_path, monkeypatch):
    found, read = recorded.session(tmp_path), []
    for number in range(3):
        recorded.run(found, f"p{number}", seed=number)
    real = tensors.Stored.read
    monkeypatch.setattr(tensors.Stored, "read", lambda self, name: read.append(name) or real(self, name))
    told = gather(found, ROLE)
    assert {name.split(".")[0] for name in read} == {"amax", "rows", "histogram", "counts", "left_out"}
    read.clear()
    told.tokens(LAYER)
    told.columns(LAYER)
    assert all(name.endswith(POINT) for name in read)


def test_runs_that_differ_are_told(tmp_path):
    found = recorded.session(tmp_path)
    for number, cfg in enumerate((1.0, 3.5, 3.5)):
        subject = replace(SUBJECT, stored_as="float8_e4m3fn" if number else "bf16")
        writer = found.begin_run(ROLE, subject, RunFacts(prompt_id=f"p{number}", steps=1, cfg=cfg), POINTS)
        recorded.write_steps(writer, [0], number)
        writer.finish()
    assert gather(found, ROLE).notices == [f"{ROLE}: runs differ in cfg: 1 (1), 3.5 (2)",
                                           f"{ROLE}: runs differ in weights: bf16 (1), float8_e4m3fn (2)"]


def test_a_layer_that_was_not_recorded_is_refused(tmp_path):
    found = recorded.session(tmp_path)
    recorded.run(found)
    told = gather(found, ROLE)
    for ask in (told.amax, told.columns, told.tokens, told.peaks, told.histogram, told.left_out):
        with pytest.raises(RecipeError, match=r"blocks\.7\.ffn\.0: expected a layer that was recorded"):
            ask("blocks.7.ffn.0")
