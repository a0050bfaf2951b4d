"""What a quantizer keeps of a planted delta, against plain float64 and comfy-kitchen's quantizers."""

import math

import pytest
import torch
from wan22_master.engine.jobs.survival import Space, Survival, same_codes, survey, tell
from wan22_master.quant.formats import Options, form_of
from wan22_master.tests.engine import kitchen

FORMATS = ["float8_e4m3fn", "mxfp8", "nvfp4", "int8_tensorwise", "convrot_w4a4", "asym_w4a8_int8"]


def planted(rows=64, columns=512, rank=4, size=5e-4, seed=1):
    """Normal weights of the size trained ones have, and the factors of a delta with elements of `size`."""
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(rows, columns, generator=draw) * 0.03
    up, down = torch.randn(rows, rank, generator=draw) * size / rank**0.5, torch.randn(rank, columns, generator=draw)
    return base, up, down


def told(base, merged, decoded, down=None):
    return tell(survey(base, merged, decoded, Space(down)))


@pytest.mark.parametrize("name", FORMATS)
def test_projection_and_cosine_are_those_of_float64(name):
    base, up, down = planted()
    merged = base + up @ down
    _, decoded = kitchen.rounded(merged, name)
    delta, moved = (merged.double() - base.double()), decoded.double() - base.double()
    found = told(base, merged, decoded)
    # differences of float32 numbers of 0.03 lose 2**-24 of them, a millionth of a delta of 5e-4 at most
    assert found["projection"] == pytest.approx(((moved * delta).sum() / delta.square().sum()).item(), rel=1e-5)
    assert found["cosine"] == pytest.approx((moved * delta).sum().item() / (moved.norm() * delta.norm()).item(), rel=1e-5)
    noise = decoded.double() - merged.double()
    wanted = (noise * delta).square().sum().sqrt().item() / delta.square().sum().item()
    assert found["standard_error"] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rank", [1, 4, 64])
def test_effect_over_noise_is_that_in_a_basis_of_the_deltas_rows(name, rank):
    base, up, down = planted(rank=rank)
    merged = base + up @ down
    _, decoded = kitchen.rounded(merged, name)
    basis = torch.linalg.qr(down.double().T).Q
    delta, noise = merged.double() - base.double(), decoded.double() - merged.double()
    found = told(base, merged, decoded, down)["effect_over_noise"]
    assert found == pytest.approx(((delta @ basis).norm() / (noise @ basis).norm()).item(), rel=1e-4)  # a ridge of 1e-6


def basis_of(down: torch.Tensor) -> torch.Tensor:
    """Orthonormal, of the rows' space, (in_features, true rank), float64; a row's length says nothing."""
    rows = torch.nn.functional.normalize(down.double(), eps=1e-300)
    _, sizes, right = torch.linalg.svd(rows, full_matrices=False)
    return right[sizes > 1e-6].T  # float32 rows that are sums of others are so to 2**-24


DEFICIENT = {
    "twice the same": lambda down: torch.cat([down, down]),
    "a row of zeros": lambda down: torch.cat([down, torch.zeros(1, down.shape[1])]),
    "a multiple": lambda down: torch.cat([down, 3.7 * down[:2]]),
    "a sum": lambda down: torch.cat([down, down[:1] + down[1:2]]),
    # two LoRAs side by side: one keeps its size in up, the other in down
    "small beside large": lambda down: torch.cat([down, 1e-5 * torch.randn(down.shape, generator=torch.manual_seed(9))]),
    "many": lambda down: torch.randn(400, 40, generator=torch.manual_seed(8)) @ planted(rank=40)[2],
    "hardly there": lambda down: 1e-30 * down,
}


@pytest.mark.parametrize("kind", DEFICIENT)
def test_rows_that_say_the_same_twice_or_in_another_size_change_nothing(kind):
    base, _, down = planted()
    down = DEFICIENT[kind](down)
    sizes = down.double().norm(dim=1)
    up = torch.randn(base.shape[0], len(down), generator=torch.manual_seed(2)) * (1e-3 / sizes.double().clamp(min=1e-35))
    delta = (up @ down.double()).float()
    merged = base + delta * (5e-4 / delta.square().mean().sqrt())
    _, decoded = kitchen.rounded(merged, "nvfp4")
    basis = basis_of(down)
    noise = decoded.double() - merged.double()
    wanted = (merged.double() - base.double()) @ basis, noise @ basis
    found = told(base, merged, decoded, down)["effect_over_noise"]
    assert found == pytest.approx((wanted[0].norm() / wanted[1].norm()).item(), rel=1e-3)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e25])
def test_the_energy_in_a_row_space_does_not_depend_on_the_size_of_its_rows(size):
    _, _, down = planted()
    rows = torch.randn(16, 512, generator=torch.manual_seed(3))
    wanted = (rows.double() @ basis_of(down)).square().sum().item()
    assert Space(size * down).energy(rows) == pytest.approx(wanted, rel=1e-5)  # squares of 1e-30 are zero in float32


def test_without_a_row_space_all_of_the_noise_counts():
    base, up, down = planted()
    merged = base + up @ down
    _, decoded = kitchen.rounded(merged, "nvfp4")
    delta, noise = merged.double() - base.double(), decoded.double() - merged.double()
    wanted = (delta.norm() / noise.norm()).item()
    for rows in (None, torch.randn(512, 512), torch.randn(600, 512)):  # as many rows as inputs span all there is
        assert told(base, merged, decoded, rows)["effect_over_noise"] == pytest.approx(wanted, rel=1e-5)


def test_a_row_space_of_nothing_hears_nothing():
    base, up, down = planted()
    found = tell(survey(base, base + up @ down, base, Space(torch.zeros(4, 512))))
    assert found["effect_over_noise"] is None or found["effect_over_noise"] == 0.0


@pytest.mark.parametrize("name", ["float8_e4m3fn", "mxfp8", "int8_tensorwise"])
def test_the_share_of_unchanged_codes_is_counted_code_by_code(name):
    base, up, down = planted(size=5e-3)
    ours, theirs = (kitchen.rounded(each, name)[0][""] for each in (base + up @ down, base))
    same = (ours.view(torch.uint8) == theirs.view(torch.uint8)).sum().item()
    assert same_codes(ours, theirs, 512) == (64 * 512, same) and 0 < same < 64 * 512


@pytest.mark.parametrize("name", ["nvfp4", "convrot_w4a4", "asym_w4a8_int8"])
def test_two_codes_of_a_byte_are_counted_apart(name):
    base, up, down = planted(size=5e-3)
    ours, theirs = (kitchen.rounded(each, name)[0][""].view(torch.uint8) for each in (base + up @ down, base))
    same = ((ours & 15) == (theirs & 15)).sum().item() + ((ours >> 4) == (theirs >> 4)).sum().item()
    assert same_codes(ours, theirs, 512) == (64 * 512, same) and 0 < same < 64 * 512
    assert same_codes(ours, ours ^ 0x10, 512) == same_codes(ours, ours ^ 0x08, 512) == (64 * 512, 32 * 512)


def test_the_standard_error_is_the_spread_of_the_projection_over_seeds():
    found, errors = [], []
    for seed in range(200):
        base, up, down = planted(rows=16, columns=256, rank=2, seed=seed)
        merged = base + up @ down
        figures = told(base, merged, kitchen.rounded(merged, "nvfp4")[1], down)
        found.append(figures["projection"])
        errors.append(figures["standard_error"])
    spread, said = torch.tensor(found).std().item(), math.sqrt(torch.tensor(errors).square().mean().item())
    # the spread of 200 is known to 5 %, three of which are 15; the roundings of a block share their scale: 5 % more
    assert said == pytest.approx(spread, rel=0.2)


def test_nothing_merged_is_told_as_nothing_and_no_noise_as_no_figure():
    base, up, down = planted()
    assert told(base, base, base) is None and tell(Survival()) is None
    exact = told(base, base + up @ down, base + up @ down, down)
    assert exact["projection"] == exact["cosine"] == 1.0 and exact["effect_over_noise"] is None and exact["unchanged"] is None
    lost = told(base, base + up @ down, base, down)  # rounded back to where it was
    assert lost["projection"] == lost["cosine"] == 0.0 and lost["effect_over_noise"] == pytest.approx(1.0)


def test_sums_of_parts_are_the_sums_of_the_whole():
    base, up, down = planted()
    merged = base + up @ down
    _, decoded = kitchen.rounded(merged, "nvfp4")
    whole, space = survey(base, merged, decoded, Space(down)), Space(down)
    parts = [survey(base[rows], merged[rows], decoded[rows], space) for rows in (slice(0, 20), slice(20, 64))]
    for one, other in zip(vars(whole).values(), vars(sum(parts, Survival())).values(), strict=True):
        assert other == pytest.approx(one, rel=1e-6)
    assert Survival(**whole.to_json()) == whole


@pytest.mark.parametrize(("search", "said"), [("balanced", 0.993), ("fast", 0.996)])
def test_merged_first_nvfp4_keeps_all_of_the_delta_but_its_error_squared(search, said):
    base, up, down = planted(rows=1024, columns=2048, rank=16)  # a delta of rms 5e-4 on weights of sigma 0.03
    merged, form = base + up @ down, form_of("nvfp4", Options(search))
    amax = merged.abs().amax().item()
    parts = form.quantize(merged, amax) | form.constants(amax)
    decoded = kitchen.decoded({"format": "nvfp4"}, parts, tuple(merged.shape))
    figures, error = told(base, merged, decoded, down), ((decoded - merged).norm() / merged.norm()).item()
    assert abs(figures["projection"] - (1 - error**2)) < 3 * figures["standard_error"]
    assert abs(figures["projection"] - said) < 3 * figures["standard_error"] and figures["standard_error"] < 0.005
    expected = (decoded.double() * merged.double()).sum().item() / merged.double().square().sum().item()
    assert expected == pytest.approx(said, abs=6e-4)  # the first two moments of Gaussian weights tell it to 1e-4
