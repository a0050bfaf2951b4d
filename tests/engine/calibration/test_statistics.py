"""What a recorder tells against plain float64 of the same inputs; amax to the bit."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from wan22_master.engine.calibration import seen as counting
from wan22_master.engine.calibration.fetch import together
from wan22_master.engine.calibration.statistics import BIN_EDGES, SAMPLE, Recorder

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BOTH = ("uncond", "cond")


def recorder(points=("a",), tokens=4, seed=0):
    return Recorder(points, seed=seed, tokens=tokens)


def rows_of(x):
    return x.reshape(-1, x.shape[-1]).double()


def check(record, point, inputs):
    """inputs: (call, tensor) of everything the point saw; all finite."""
    together = torch.cat([rows_of(x) for _, x in inputs])
    column = record.points.index(point)
    assert torch.equal(record.peaks[point], together.abs().amax(0).float())
    # float32 sums of squares: each addition rounds by 2^-24, at most as many in a row as there are rows
    torch.testing.assert_close(record.squares[point], together.square().sum(0), rtol=2**-24 * (len(together) + 4), atol=0)
    assert record.counts[point] == len(together)
    for call in range(len(record.calls)):
        mine = [x for number, x in inputs if number == call]
        if mine:
            assert torch.equal(record.amax[call, column], torch.stack([x.abs().max().float() for x in mine]).max())
        else:
            assert math.isnan(record.amax[call, column])
        assert record.rows[call, column] == sum(x.numel() // x.shape[-1] for x in mine)


@settings(max_examples=40, deadline=None)
@given(seed=some.integers(0, 2**31), dtype=some.sampled_from(DTYPES),
       passes=some.lists(some.integers(1, 2), min_size=1, max_size=3),
       middle=some.lists(some.integers(1, 5), max_size=2), width=some.integers(1, 40))
def test_sums_counts_and_largest_values_are_those_of_float64(seed, dtype, passes, middle, width):
    draw, found, inputs = torch.Generator().manual_seed(seed), recorder(("a", "b")), {"a": [], "b": []}
    call = 0
    for parts in passes:
        found.begin(0.5, BOTH[:parts])
        for point in ("a", "b") if parts == 2 else ("a", "a"):   # a second look at one point in one pass is taken together
            x = (torch.randn(parts, *middle, width, generator=draw) * 3).to(dtype)
            before = x.clone()
            found.see(point, x)
            assert torch.equal(x, before)
            inputs[point] += [(call + place, chunk) for place, chunk in enumerate(x.chunk(parts))]
        call += parts
    record = found.take(3)
    assert record.step == 3 and len(record.calls) == call
    for point in ("a", "b"):
        if inputs[point]:
            check(record, point, inputs[point])
        else:
            assert point not in record.squares and record.amax[:, record.points.index(point)].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_bands_do_not_change_what_is_told(monkeypatch, dtype):
    monkeypatch.setattr(counting, "BAND", 64)
    x, found = torch.randn(2, 37, 24).to(dtype), recorder()
    found.begin(1.0, BOTH)
    found.see("a", x)
    check(found.take(0), "a", list(enumerate(x.chunk(2))))


def test_squares_of_large_float16_inputs_do_not_overflow():
    found = recorder()
    found.begin(1.0, ("cond",))
    found.see("a", torch.full((1, 100, 3), 60000.0, dtype=torch.float16))
    record = found.take(0)
    assert record.squares["a"].tolist() == pytest.approx([100 * 60000.0**2] * 3, rel=2**-20)   # 100 float32 additions
    assert record.amax.item() == 60000.0 and not record.left_out


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_devices_way_tells_the_same_as_the_cpus(dtype):
    """Both run on the CPU here: what differs is the order of float32 sums."""
    rows = torch.randn(300, 24).to(dtype) * 50
    rows[:, 3] = 0.0
    (peaks, squares), (other, sums) = counting._on_device(rows), counting._on_cpu(rows)
    assert torch.equal(peaks.view(torch.int32), other.view(torch.int32))
    torch.testing.assert_close(squares, sums, rtol=2**-24 * 300, atol=0)   # 300 additions


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_input_that_is_not_finite_is_told_and_is_in_no_sum(bad, dtype):
    x = torch.randn(2, 20, 6).to(dtype)
    x[0, 3, 2] = bad
    found, fine = recorder(tokens=20), recorder(tokens=20)
    found.begin(1.0, BOTH)
    found.see("a", x)
    record = found.take(0)
    fine.begin(1.0, ("cond",))
    fine.see("a", x[1:])
    other = fine.take(0)
    assert record.amax[0].item() == math.inf and record.amax[1].item() == x[1].abs().max()
    assert record.left_out == {"a": 1} and record.counts == {"a": 20} and record.rows.tolist() == [[20], [20]]
    assert torch.equal(record.squares["a"], other.squares["a"]) and torch.equal(record.peaks["a"], other.peaks["a"])
    assert record.histogram.sum() == 20 * 6
    assert record.tokens["a"].isfinite().all() and len(record.tokens["a"]) == 20


def test_squares_beyond_float32_are_left_out_and_the_largest_value_is_not_told_as_finite():
    found = recorder()
    found.begin(1.0, ("cond",))
    found.see("a", torch.full((1, 2, 3), 1e30))
    record = found.take(0)
    assert record.left_out == {"a": 1} and record.counts["a"] == 0 and record.amax.item() == math.inf


@settings(max_examples=40, deadline=None)
@given(seed=some.integers(0, 2**31), scale=some.floats(-30, 22), dtype=some.sampled_from(DTYPES[:2]))
def test_the_histogram_is_numpys_of_all_vectors_where_they_are_few(seed, scale, dtype):
    x = (torch.randn(1, SAMPLE, 7, generator=torch.Generator().manual_seed(seed)) * 2**scale).to(dtype)
    x[0, 0, :2] = torch.tensor([0.0, 2.0**int(scale)])   # zero, and an edge itself
    found = recorder()
    found.begin(1.0, ("cond",))
    found.see("a", x)
    expected = np.bincount(np.digitize(x.double().abs().numpy().ravel(), BIN_EDGES.double().numpy()), minlength=len(BIN_EDGES) + 1)
    assert found.take(0).histogram[0].tolist() == expected.tolist()


def test_edges_are_four_an_octave_and_exact():
    wanted = (np.exp2(np.arange(-24, 20))[:, None] * [1, 1.25, 1.5, 1.75]).ravel().tolist()
    assert BIN_EDGES.double().tolist() == [*wanted, 2.0**20]


def test_tokens_are_vectors_of_the_input_seeded_and_different_from_pass_to_pass():
    x = torch.arange(200.0).reshape(1, 100, 2)
    def go(seed):
        found = recorder(("a", "b"), tokens={"a": 5, "b": 0}, seed=seed)
        for _ in range(2):
            found.begin(1.0, ("cond",))
            found.see("a", x)
            found.see("b", x)
        return found.take(0).tokens
    first, again, other = go(1), go(1), go(2)
    assert first["b"].shape == (0, 2) and first["a"].shape == (10, 2)
    rows = {tuple(row) for row in x[0].tolist()}
    assert all(tuple(row) in rows for row in first["a"].tolist())
    assert torch.equal(first["a"], again["a"]) and not torch.equal(first["a"], other["a"])
    assert not torch.equal(first["a"][:5], first["a"][5:]) and len(set(map(tuple, first["a"][:5].tolist()))) == 5


def test_a_batch_of_two_prompts_each_way_falls_into_two_parts():
    x, found = torch.randn(4, 3, 5), recorder()
    found.begin(torch.tensor([0.25, 0.5]), BOTH)
    found.see("a", x)
    record = found.take(0)
    assert [(call.sigma, call.part) for call in record.calls] == [(0.25, "uncond"), (0.25, "cond")]
    assert record.amax[:, 0].tolist() == [x[:2].abs().max().item(), x[2:].abs().max().item()]


def test_a_sampler_may_write_into_its_sigma_afterwards():
    sigma, found = torch.tensor([0.75]), recorder()
    found.begin(sigma, ("cond",))
    sigma.fill_(0.0)
    found.begin(0.9, ("cond",))
    assert [call.sigma for call in found.take(0).calls] == [0.75, 0.9]


def test_inputs_of_inference_mode_and_with_gradients_are_taken():
    found = recorder()
    found.begin(1.0, ("cond",))
    with torch.inference_mode():
        found.see("a", torch.ones(1, 2, 3))
    found.see("a", torch.full((1, 2, 3), -2.0, requires_grad=True))
    record = found.take(0)
    assert record.squares["a"].tolist() == [10.0] * 3 and record.amax.item() == 2.0


def test_a_recorder_is_empty_after_take():
    found = recorder()
    found.begin(1.0, ("cond",))
    found.see("a", torch.ones(1, 2, 3))
    found.take(0)
    assert not found.take(1).calls and found.take(1).amax.shape == (0, 1)
    with pytest.raises(ValueError, match="no pass"):
        found.see("a", torch.ones(1, 2, 3))


@pytest.mark.parametrize(("point", "x", "text"), [
    ("c", torch.ones(2, 3), "another name"), ("a", torch.ones(3, 3), "2 equal parts"), ("a", torch.ones(2), "2 equal parts"),
    ("a", torch.ones(2, 3, dtype=torch.int64), "expected floats")])
def test_what_cannot_be_counted_is_refused(point, x, text):
    found = recorder()
    found.begin(1.0, BOTH)
    with pytest.raises(ValueError, match=text):
        found.see(point, x)


def test_unknown_parts_are_refused():
    for parts in ((), ("cond", "other")):
        with pytest.raises(ValueError, match="expected parts"):
            recorder().begin(1.0, parts)


def test_nothing_is_read_from_the_device_before_take():
    """On the meta device every question for a value is an error."""
    found = recorder(("a", "b"))
    found.begin(torch.ones(1, device="meta"), BOTH)
    for point in ("a", "b", "a"):
        found.see(point, torch.ones(4, 50, 6, device="meta", dtype=torch.bfloat16))
    with pytest.raises((NotImplementedError, RuntimeError)):
        found.take(0)


@settings(max_examples=30, deadline=None)
@given(some.lists(some.tuples(some.sampled_from([*DTYPES, torch.bool, torch.int64]), some.lists(some.integers(0, 3), max_size=3))))
def test_tensors_come_together_as_they_were(kinds):
    given = [torch.randint(0, 2, shape).to(dtype) for dtype, shape in kinds]
    found = together(given)
    assert [(tensor.dtype, tensor.shape) for tensor in found] == [(tensor.dtype, tensor.shape) for tensor in given]
    assert all(map(torch.equal, found, given))
