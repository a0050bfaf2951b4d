import pytest
import torch
from wan22_master.engine.bands import Workers
from wan22_master.engine.errors import RecipeError
from wan22_master.engine.loratools.low_rank import stored_fit, truncate
from wan22_master.engine.loratools.sketch import Method, Run, fit_dense
from wan22_master.engine.loratools.wish import Ranks

EXACT, RANDOM = Method(), Method(exact_side=8)


def random(*shape, seed=0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spectrum(sigma: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """A matrix with these singular values, float64."""
    left, _ = torch.linalg.qr(random(rows, len(sigma), seed=1))
    right, _ = torch.linalg.qr(random(columns, len(sigma), seed=2))
    return left * sigma @ right.t()


def product(fit) -> torch.Tensor:
    return fit.up.double() @ fit.down.double()


@pytest.mark.parametrize(("rows", "columns", "rank"), [(90, 60, 12), (60, 90, 12), (40, 30, 100)])
def test_truncation_is_the_best_one_and_states_its_error(rows, columns, rank):
    up, down = random(rows, rank), random(rank, columns, seed=3)
    whole = up @ down
    fit = truncate(up, down, Ranks(5), torch.float32)
    sigma = torch.linalg.svdvals(whole)
    best = sigma[5:].square().sum().sqrt()
    assert fit.rank == 5
    assert (whole - product(fit)).norm() == pytest.approx(best.item(), rel=1e-7)  # float32 factors
    assert fit.lost ** 0.5 == pytest.approx((whole - product(fit)).norm().item(), rel=1e-6)
    assert fit.total == pytest.approx(whole.square().sum().item())


def test_a_rank_that_is_not_there_is_not_invented():
    up, down = random(50, 3), random(3, 40, seed=4)
    fit = truncate(torch.cat([up, up], 1), torch.cat([down, down]), Ranks(64), torch.float32)
    assert fit.rank == 3 and (product(fit) - 2 * up @ down).norm() < 1e-6 * (up @ down).norm()


@pytest.mark.parametrize(("energy", "expected"), [(0.5, 1), (0.8, 2), (0.95, 3), (1.0, 5)])
def test_energy_keeps_the_fewest_components_that_hold_it(energy, expected):
    sigma = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.5], dtype=torch.float64)     # shares 0.53, 0.83, 0.96, 0.99, 1
    delta = spectrum(sigma, 70, 50)
    with Workers(1) as workers:
        assert fit_dense("k", delta.float(), Ranks(40, energy), torch.float32, Run(workers, EXACT)).rank == expected
        assert fit_dense("k", delta.float(), Ranks(2, energy), torch.float32, Run(workers, EXACT)).rank == min(expected, 2)


@pytest.mark.parametrize("method", [EXACT, RANDOM], ids=["exact", "random"])
@pytest.mark.parametrize("shape", [(700, 300), (300, 700)])
def test_a_dense_delta_loses_hardly_more_than_it_must(method, shape):
    sigma = 1 / torch.arange(1, 201, dtype=torch.float64)
    delta = spectrum(sigma, *shape)
    with Workers(2) as workers:
        fit = fit_dense("k", delta.float(), Ranks(16), torch.float32, Run(workers, method))
    best = sigma[16:].square().sum()
    found = (delta - product(fit)).square().sum()
    assert found <= best * 1.02                    # Halko et al., section 4.5: two power iterations on a slow spectrum
    assert fit.lost == pytest.approx(found.item(), rel=1e-4) and fit.total == pytest.approx(sigma.square().sum().item(), rel=1e-6)


def test_the_same_seed_gives_the_same_bits_on_any_number_of_threads_and_another_layer_another_draw():
    delta = (random(300, 280) + spectrum(torch.ones(4, dtype=torch.float64) * 40, 300, 280)).float()
    found = []
    for count, key, seed in ((1, "a", 0), (3, "a", 0), (1, "b", 0), (1, "a", 1)):
        with Workers(count) as workers:
            found.append(fit_dense(key, delta, Ranks(8), torch.float32, Run(workers, Method(seed=seed, exact_side=8))).up)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2]) and not torch.equal(found[0], found[3])


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 6e-8), (torch.bfloat16, 6e-3), (torch.float16, 8e-4)])
def test_the_error_of_storing_is_measured_and_fits_the_dtype(dtype, most):
    up, down = random(80, 6) * 1e-7, random(6, 50, seed=7)                    # a up that float16 alone would lose
    fit = stored_fit(up, down, dtype)
    true = (product(fit) - up @ down).norm() / (up @ down).norm()
    assert 0 < true < most and (fit.lost / fit.total) ** 0.5 == pytest.approx(true.item(), rel=1e-6)


@pytest.mark.parametrize("wrong", [{"most": 0}, {"most": 5000}, {"energy": 0.0}, {"energy": 1.1}])
def test_impossible_ranks_are_refused(wrong):
    with pytest.raises(RecipeError, match="expected"):
        Ranks(**wrong)
