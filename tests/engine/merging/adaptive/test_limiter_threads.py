"""The limiter and what it cuts have the same bits for every number of torch threads, whatever library multiplies."""
import pytest
import torch
from safetensors.torch import save_file
from wan22_master.engine import products
from wan22_master.engine.loras.lora import open_lora
from wan22_master.engine.loras.modules import Pair
from wan22_master.engine.merging.adaptive import apply, export
from wan22_master.engine.merging.adaptive.apply import gated_factors
from wan22_master.engine.merging.adaptive.constants import AdaptiveConstants
from wan22_master.engine.merging.adaptive.entry import Entry
from wan22_master.engine.merging.adaptive.limiter import cross
from wan22_master.engine.merging.adaptive.spaces import decompose
from wan22_master.engine.merging.contribution import PassRule, Rules
from wan22_master.engine.merging.merge import load_change
from wan22_master.engine.specs import TensorSpec

from .fixtures import Q, ask
from .planted import randn

SIDE, CPU = 512, torch.device("cpu")
RANKS = (4, 7, 8, 12, 24)
STEM = f"diffusion_model.{Q}."


class Measured:
    """A delta that passes whole, on a base of norm 1."""

    def __init__(self, up, down, number):
        found = decompose(up, down, 1e-6)
        energy = found.sigma.square().sum().item()
        figures = dict.fromkeys(("energy", "energy_new", "passed_new"), energy) | {"energy_refine": 0.0, "passed_refine": 0.0}
        figures |= {"share": None, "tau": None, "pairs_known": 0, "pairs_too_strong": 0, "base": 1.0, "base_spectral": 0.1}
        self.constants, self.sha256 = AdaptiveConstants(), str(number)
        self.found = Entry(found.left, found.right, found.sigma, None, figures)

    def entry(self, key, shape, modules):
        return self.found


@pytest.fixture
def threads():
    """Call `each(compute)`: what it returns with 1, 2 and 4 torch threads."""
    before = torch.get_num_threads()

    def each(compute):
        found = []
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append(compute())
            assert torch.get_num_threads() == count
        return found

    yield each
    torch.set_num_threads(before)


@pytest.fixture(params=["oneDNN", "torch.mm"])
def library(request, monkeypatch):
    if request.param == "torch.mm":
        monkeypatch.setattr(products, "_linear", lambda: None)


def parts(folder, rank: int, count: int) -> list:
    """`count` LoRAs of one rank with something in common, so that their inner products are far from zero."""
    found, common = [], randn(99, SIDE, rank)
    for number in range(count):
        up, down = (randn(number, SIDE, rank) + 0.3 * common).float(), randn(100 + number, rank, SIDE).float()
        path = folder / f"{rank}_{number}.safetensors"
        save_file({f"{STEM}lora_B.weight": up, f"{STEM}lora_A.weight": down}, path)
        pair = Pair(f"{STEM}lora_B.weight", f"{STEM}lora_A.weight", None, rank, 1.0, "")
        found.append(ask(open_lora(path), [pair], 1.0 - 0.05 * number, gated=Measured(up, down, number)))
    return found


@pytest.mark.parametrize("rank", RANKS)
def test_inner_products_are_those_of_float64_and_the_same_bits_on_any_number_of_threads(rank, threads):
    one, other = randn(1, 3000, rank).float(), randn(2, 3000, 9 * rank).float()
    first, *again = threads(lambda: cross(one, other))
    exact = one.double().t() @ other.double()
    assert (first - exact).norm() <= 2**-24 * 2048**0.5 * exact.norm()             # 2^-24 a sum, random signs, chunks of 2048
    assert all(torch.equal(first, each) for each in again)


@pytest.mark.parametrize("count", [2, 10])
@pytest.mark.parametrize("rank", RANKS)
def test_what_the_limiter_cuts_is_the_same_on_any_number_of_threads(tmp_path, rank, count, threads, library):
    whats = parts(tmp_path, rank, count)
    first, *again = threads(lambda: gated_factors(f"{Q}.weight", (SIDE, SIDE), whats, CPU))
    limit = first[1][0]["limits"]["new"]
    assert limit["factor"] < 1 and limit["exact"]
    total = sum(each.up.double() @ each.down.double() for each in first[0])
    assert total.norm().item() == pytest.approx(0.08, rel=1e-6)                     # the limit of a base of norm 1
    for factors, told in again:
        assert told == first[1]
        assert all(torch.equal(a.up, b.up) and torch.equal(a.down, b.down) for a, b in zip(factors, first[0], strict=True))


def test_every_product_of_gating_runs_on_one_thread_and_so_does_exporting(tmp_path, threads, monkeypatch):
    seen, [what] = [], parts(tmp_path, 7, 1)

    def watched(place, name):
        real = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *more: (seen.append((name, torch.get_num_threads())), real(*more))[1])

    for place, name in ((apply, "limit"), (apply, "raw_factors"), (apply, "norm_of_sum"), (apply, "_apply"), (export, "_balanced")):
        watched(place, name)
    threads(lambda: gated_factors(f"{Q}.weight", (SIDE, SIDE), [what], CPU))
    key = f"{Q}.weight"
    threads(lambda: [None for _ in export.gated_lora(what.gated, what.lora, {key: what.modules}, {key: (SIDE, SIDE)})])
    assert len(seen) == 3 * 5 and {count for _, count in seen} == {1}


@pytest.mark.parametrize("rank", RANKS)
def test_a_loaded_change_is_the_same_on_any_number_of_threads(tmp_path, rank, threads, library):
    whats = parts(tmp_path, rank, 10)
    spec, rules = TensorSpec((SIDE, SIDE), torch.bfloat16), Rules((PassRule("orthogonal"),))

    def load():
        return [each.factors for each in load_change(f"{Q}.weight", spec, whats, CPU, rules).terms]

    first, *again = threads(load)
    for factors in again:
        assert all(torch.equal(a.up, b.up) and torch.equal(a.down, b.down) for a, b in zip(factors, first, strict=True))
