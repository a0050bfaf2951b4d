import pytest
from wan22_master.engine.boundary import boundary_of, high_share, split_of, split_step
from wan22_master.engine.errors import RecipeError


def sigmas(steps: int, shift: float) -> list[float]:
    """Evenly in time, as the flow schedule of Wan lays them (SD3, arXiv 2403.03206, eq. 23)."""
    times = [1 - step / steps for step in range(steps + 1)]
    return [shift * time / (1 + (shift - 1) * time) for time in times]


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0, 8.0, 12.0])
@pytest.mark.parametrize("boundary", [0.875, 0.9])
def test_the_formula_counts_the_steps_at_or_above_the_boundary(shift, boundary):
    for steps in range(1, 101):
        noise = sigmas(steps, shift)
        want = sum(sigma >= boundary - 1e-9 for sigma in noise[:-1])
        assert split_step(steps, shift, boundary) == want == split_of(noise, boundary)


def test_the_published_workflows_come_out():
    # ComfyUI's template: 4 steps, shift 5, change at 2; 20 steps, shift 8, change at 10
    assert split_step(4, 5.0, 0.9) == 2 and split_step(20, 8.0, 0.9) == 10
    assert round(high_share(0.9, 5.0), 3) == 0.357 and round(high_share(0.875, 12.0), 3) == 0.632


def test_a_sigma_equal_to_the_boundary_is_high_noise_also_in_float32():
    assert split_of([1.0, 0.87499994, 0.5, 0.0], 0.875) == 2
    assert split_of([1.0, 0.8749, 0.5, 0.0], 0.875) == 1


def test_the_task_tells_the_boundary_or_the_way_out():
    assert (boundary_of("i2v"), boundary_of("t2v")) == (0.9, 0.875)
    with pytest.raises(RecipeError, match="found ti2v; choose custom"):
        boundary_of("ti2v")


@pytest.mark.parametrize(("call", "arguments"), [
    (split_step, (0, 5.0, 0.9)), (split_step, (4, 0.0, 0.9)), (split_step, (4, 5.0, 1.0)), (split_of, ([1.0], 0.9)),
    (split_of, ([0.5, 1.0], 0.9))])
def test_what_is_no_schedule_is_refused(call, arguments):
    with pytest.raises(RecipeError):
        call(*arguments)
