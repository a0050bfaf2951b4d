"""Passes, thinning, transforms and normalize of one tensor, against plain float64 torch over whole tensors.

The deltas are stored differences of few bits and strengths are powers of two, so that ranks and signs are exact in float32 too.
"""

import itertools
import threading
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file
from wan22_master.engine import bands
from wan22_master.engine.errors import RecipeError
from wan22_master.engine.loras.delta import Delta, Transform
from wan22_master.engine.loras.factors import Factors
from wan22_master.engine.loras.lora import open_lora
from wan22_master.engine.loras.modules import Diff, Pair
from wan22_master.engine.merging import finish, merge
from wan22_master.engine.merging.combine.dare import coin_key, drop
from wan22_master.engine.merging.contribution import Contribution, PassRule, Rules
from wan22_master.engine.merging.merge import load_change, merge_whole
from wan22_master.engine.specs import TensorSpec

KEY, SHAPE, CPU = "blocks.0.ffn.0.weight", (140, 300), torch.device("cpu")
UP, DOWN, DIFF = (f"diffusion_model.blocks.0.ffn.0.{name}" for name in ("lora_up.weight", "lora_down.weight", "diff"))
NUMEL = SHAPE[0] * SHAPE[1]
CLOSE = {"rtol": 0, "atol": 40 * 2.0**-24}  # roundings of weights and deltas below 2


@pytest.fixture(autouse=True)
def bands_of_128_rows(monkeypatch):
    monkeypatch.setattr(bands, "BAND_ELEMENTS", 1)
    monkeypatch.setattr(finish, "BAND_ELEMENTS", 8 * SHAPE[0])


@pytest.fixture
def make(tmp_path):
    """A contribution of a stored difference, or of factors, and its delta in float64 at its strength."""
    numbers = itertools.count()

    def one(strength=1.0, rank=0, size=1.0, **asked):
        seed = next(numbers)
        draw, path = torch.manual_seed(100 + seed), tmp_path / f"{seed}.safetensors"
        if rank:
            up, down = torch.randn(SHAPE[0], rank, generator=draw), torch.randn(rank, SHAPE[1], generator=draw) * 0.1 * size
            save_file({UP: up, DOWN: down}, path)
            modules, delta = [Pair(UP, DOWN, None, rank, 1.0, "")], up.double() @ down.double()
        else:
            stored = (torch.randn(SHAPE, generator=draw) * 0.1 * size).bfloat16()
            save_file({DIFF: stored}, path)
            modules, delta = [Diff(DIFF)], stored.double()
        return Contribution(open_lora(path), modules, strength, sha256=f"{seed:064x}", **asked), strength * delta
    return one


def weight():
    return torch.randn(SHAPE, generator=torch.manual_seed(1)) * 0.25


def threaded(compute, spans):
    """`run` with a thread for every band, all at once."""
    results = {}
    workers = [threading.Thread(target=lambda span=span: results.update({span: compute(span)})) for span in spans]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return [results[span] for span in spans]


def merged(parts, rules, run=merge.serial):
    change, whole = load_change(KEY, TensorSpec(SHAPE, torch.bfloat16), parts, CPU, rules), weight()
    energies = merge_whole(change, whole, run)
    return whole, energies, change


def top64(delta, count):
    """The `count` largest magnitudes, the first ones of equal ones (a stable sort), the others 0."""
    flat, kept = delta.flatten(), torch.zeros(NUMEL, dtype=torch.float64)
    places = flat.abs().sort(descending=True, stable=True).indices[:count]
    kept[places] = flat[places]
    return kept.view(SHAPE)


def elect64(deltas):
    stack = torch.stack(deltas)
    agrees = (stack.sign() == stack.sum(0).sign()) & (stack != 0)
    return (stack * agrees).sum(0) / agrees.sum(0).clamp(min=1)


def combine64(rule, deltas, contributions):
    """f(deltas) of one pass, as the papers have it."""
    count = int(rule.density * NUMEL)
    if rule.combine == "ties":
        return elect64([top64(delta, count) for delta in deltas])
    if rule.combine == "breadcrumbs":
        outliers = int(rule.gamma * NUMEL)
        return sum(top64(delta, outliers + count) - top64(delta, outliers) for delta in deltas)
    if rule.combine == "dare_ties":
        keys = [coin_key(rule.seed, KEY, each.sha256) for each in contributions]
        return elect64([drop(delta.float(), rule.density, key).double() for delta, key in zip(deltas, keys, strict=True)])
    if rule.combine == "slerp":
        a, b = deltas
        angle = torch.acos((a * b).sum() / a.norm() / b.norm())
        return (torch.sin((1 - rule.t) * angle) * a + torch.sin(rule.t * angle) * b) / torch.sin(angle)
    basis = []
    for delta in sorted(deltas, key=lambda each: -each.norm()):
        rest = delta - sum(((delta * other).sum() / (other * other).sum() * other for other in basis), torch.zeros(SHAPE))
        basis.append(rest)
    return sum(rest * delta.norm() / rest.norm()
               for rest, delta in zip(basis, sorted(deltas, key=lambda each: -each.norm()), strict=True))


RULES = [PassRule("ties", 0.2), PassRule("ties"), PassRule("dare_ties", 0.5, seed=9), PassRule("breadcrumbs", 0.7, 0.05),
         PassRule("slerp", t=0.3), PassRule("orthogonal")]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.combine}-{rule.density}")
def test_a_pass_is_its_papers_formula_on_the_dense_deltas(make, rule):
    parts, deltas = zip(make(0.5), make(-2.0), *([] if rule.combine == "slerp" else [make(1.0)]), strict=True)
    found, energies, change = merged(list(parts), Rules((rule,)))
    want = combine64(rule, list(deltas), parts)
    assert torch.allclose(found.double(), weight().double() + want, **CLOSE)
    assert sum(map(sum, energies.gram)) == pytest.approx(want.square().sum().item(), rel=1e-6)
    assert energies.moved is None and energies.rest is None
    assert [told["combine"] for told in change.describe()] == [rule.combine] * len(parts)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.combine}-{rule.density}")
def test_neither_threads_nor_bands_nor_the_order_of_loras_matter(make, rule, monkeypatch):
    count = 2 if rule.combine == "slerp" else 4
    parts = [make(0.5 * (n + 1), protected=n == 3, place=n)[0] for n in range(count)]
    first, energies, _ = merged(parts, Rules((rule,)))
    again, others, _ = merged(parts, Rules((rule,)), threaded)
    assert torch.equal(first, again) and energies == others
    if rule.combine != "slerp":                    # it has a first and a second
        backwards, *_ = merged(parts[::-1], Rules((rule,)))
        assert torch.allclose(first, backwards, **CLOSE)
    monkeypatch.setattr(bands, "BAND_ELEMENTS", 10**6)
    if rule.combine not in ("slerp", "orthogonal"):  # the sums of a Gram matrix are rounded band by band
        assert torch.equal(merged(parts, Rules((rule,)))[0], first)


@pytest.mark.parametrize("combine", ["slerp", "orthogonal"])
def test_methods_that_only_weigh_keep_the_one_product(make, combine):
    rule, (parts, deltas) = PassRule(combine, t=0.7), zip(make(0.5, rank=4), make(1.5, rank=7), strict=True)
    found, energies, change = merged(list(parts), Rules((rule,)))
    want = combine64(rule, list(deltas), parts)
    assert change.joint is not None and not change.needs_whole
    assert torch.allclose(found.double(), weight().double() + want, rtol=0, atol=2e-6)
    assert sum(map(sum, energies.gram)) == pytest.approx(want.square().sum().item(), rel=1e-6)


@pytest.mark.parametrize(("place", "share"), [(0, 0.75), (1, 0.25)])
@pytest.mark.parametrize("rank", [0, 3])
def test_where_slerp_has_one_delta_the_other_is_zero(make, place, share, rank):
    part, delta = make(rank=rank, place=place)
    found, *_ = merged([part], Rules((PassRule("slerp", t=0.25),)))
    assert torch.allclose(found.double(), weight().double() + share * delta, rtol=0, atol=2e-6)


def test_slerp_of_three_is_refused(make):
    with pytest.raises(RecipeError, match="exactly two LoRAs, found 3"):
        merged([make()[0] for _ in range(3)], Rules((PassRule("slerp"),)))


def test_passes_do_not_see_each_other_and_protected_loras_are_added_exactly(make):
    rules = Rules((PassRule("ties", 0.3), PassRule("breadcrumbs", 0.5, 0.1)))
    parts, deltas = zip(make(pass_number=0), make(2.0, pass_number=0), make(pass_number=1), make(pass_number=2),
                        make(protected=True, pass_number=0), make(rank=3, protected=True, pass_number=1), strict=True)
    found, energies, change = merged(list(parts), rules)
    want = [combine64(rules.passes[0], list(deltas[:2]), parts), combine64(rules.passes[1], [deltas[2]], parts), *deltas[3:]]
    assert torch.allclose(found.double(), weight().double() + sum(want), rtol=0, atol=4e-6)
    gram = torch.tensor(energies.gram)
    assert gram[:2, :2].sum().item() == pytest.approx(want[0].square().sum().item(), rel=1e-6)
    for place, delta in zip((2, 3, 4, 5), want[1:], strict=True):
        assert gram[place, place].item() == pytest.approx(delta.square().sum().item(), rel=1e-6)
    told = change.describe()
    assert ["protected" in each for each in told] == [False] * 4 + [True] * 2
    assert [each.get("combine") for each in told] == ["ties", "ties", "breadcrumbs", None, None, None]
    assert told[2]["kept"] == int(0.5 * NUMEL) / NUMEL and 0.1 < told[0]["kept"] <= 0.3


@pytest.mark.parametrize("density", [0.1, 0.75])
def test_dense_deltas_are_thinned_to_exactly_their_share_as_they_are(make, density):
    part, delta = make(-0.5, method="classic", dense_density=density)
    found, energies, change = merged([part], Rules())
    want = top64(delta, int(density * NUMEL))
    assert torch.allclose(found.double(), weight().double() + want, **CLOSE)
    assert change.needs_whole and energies.gram[0][0] == pytest.approx(want.square().sum().item(), rel=1e-6)
    [told] = change.describe()
    assert (told["method"], told["dense"], told["dense_mode"], told["dense_density"]) == ("addition", True, "magnitude", density)


def test_dense_deltas_can_be_thinned_by_coins_and_are_rescaled(make):
    part, delta = make(2.0, method="adaptive", dense_density=0.25, dense_mode="dare", seed=4)
    found, *_ = merged([part], Rules())
    want = drop(delta.float(), 0.25, coin_key(4, KEY, part.sha256)).double()
    assert torch.allclose(found.double(), weight().double() + want, **CLOSE)
    assert (want != 0).double().mean().item() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("asked", [{"method": "addition"}, {"method": "classic", "protected": True}])
def test_what_is_added_or_protected_is_not_thinned(make, asked):
    part, delta = make(dense_density=0.1, **asked)
    assert torch.allclose(merged([part], Rules())[0].double(), weight().double() + delta, **CLOSE)


def test_vectors_are_added_directly(tmp_path):
    save_file({DIFF: torch.full((1, 6, 20), 0.5)}, tmp_path / "l.safetensors")
    part = Contribution(open_lora(tmp_path / "l.safetensors"), [Diff(DIFF)], 1.0, "classic", dense_density=0.1)
    for shape in ((120,), (1, 6, 20)):
        change = load_change(KEY, TensorSpec(shape, torch.bfloat16), [part], CPU)
        whole = torch.zeros(shape)
        if len(shape) == 3:
            merge_whole(change, whole)
            assert (whole == 0.5).all()
        assert not change.needs_whole


@dataclass(frozen=True)
class Turn:
    """V -> V + s * (matrix @ V) or, not whole, V -> V + s * (V @ matrix); or, of form base, delta = row norms of W * W."""

    form: ClassVar[str] = "transform"
    kind: ClassVar[str] = "oft"
    keys: ClassVar[tuple] = ()
    rank: ClassVar[int] = 0
    factor: ClassVar[float] = 1.0
    alpha_from: ClassVar[str] = ""
    whole: bool

    @property
    def matrix(self):
        side = SHAPE[0] if self.whole else SHAPE[1]
        return torch.randn(side, side, generator=torch.manual_seed(side)) * 0.02

    def load(self, lora, shape, device):
        return Turned(self)


class Turned(Transform):
    def __init__(self, turn):
        self.whole, self.matrix = turn.whole, turn.matrix

    def apply(self, weight, rows, columns, strength):
        side = weight.shape[0] if self.whole else weight.shape[1]
        assert side == self.matrix.shape[0]
        weight.add_(self.matrix @ weight if self.whole else weight @ self.matrix, alpha=strength)


def turn64(wide, turn, strength):
    matrix = turn.matrix.double()
    return wide + strength * (matrix @ wide if turn.whole else wide @ matrix)


@pytest.mark.parametrize("run", [merge.serial, threaded])
@pytest.mark.parametrize("normalize", [False, True])
def test_transforms_come_last_in_list_order_and_every_energy_is_exact(make, normalize, run):
    (plain, delta), (exact, kept) = make(0.5, rank=4), make(0.25, protected=True)
    turns = [(Turn(whole=True), 0.5), (Turn(whole=False), -2.0)]
    turning = [Contribution(plain.lora, [turn], strength) for turn, strength in turns]
    for order in ((0, 1), (1, 0)):
        parts = [turning[order[0]], plain, turning[order[1]], exact]
        found, energies, _ = merged(parts, Rules(normalize=normalize), run)
        want, steps = weight().double() + delta + kept, []
        for place in order:
            after = turn64(want, *turns[place])
            steps.append((after - want).square().sum().item())
            want = after
        want = want * (weight().double().norm() / want.norm() if normalize else 1.0)
        assert torch.allclose(found.double(), want, rtol=0, atol=4e-6)
        move = want - weight().double()
        assert energies.moved == pytest.approx(move.square().sum().item(), rel=1e-5)
        assert energies.rest == pytest.approx((move - kept).square().sum().item(), rel=1e-5)
        assert [energies.gram[0][0], energies.gram[2][2]] == pytest.approx(steps, rel=1e-5)
        assert energies.gram[1][3] == pytest.approx((delta * kept).sum().item(), abs=1e-5)


@pytest.mark.parametrize("parts", ["plain", "dense"])
def test_normalize_gives_a_matrix_the_norm_of_its_base(make, parts):
    part, delta = make(3.0, rank=4 if parts == "plain" else 0)
    found, energies, change = merged([part], Rules(normalize=True))
    wide, base = weight().double() + delta, weight().double()
    assert found.double().norm().item() == pytest.approx(base.norm().item(), rel=1e-7)
    assert torch.allclose(found.double(), wide * base.norm() / wide.norm(), rtol=0, atol=2e-6)
    assert energies.row()["moved"] == pytest.approx((found.double() - base).square().sum().item(), rel=1e-9)
    assert change.original is None                 # 283 MB that nobody needs any more


def test_normalize_leaves_vectors_alone(tmp_path):
    save_file({DIFF: torch.ones(20)}, tmp_path / "l.safetensors")
    part = Contribution(open_lora(tmp_path / "l.safetensors"), [Diff(DIFF)], 1.0)
    whole = torch.zeros(20)
    energies = merge_whole(load_change("blocks.0.ffn.0.bias", TensorSpec((20,), torch.float32), [part], CPU,
                                       Rules(normalize=True)), whole)
    assert (whole == 1).all() and energies.row() == {"gram": [[20.0]]}


@dataclass(frozen=True)
class Seen(Turn):
    form: ClassVar[str] = "base"
    kind: ClassVar[str] = "dora"

    def load(self, lora, shape, device):
        return SeenDelta()


class SeenDelta(Delta):
    """delta = W / ||W||, a column further: needs a statistic of the whole base first, and all columns of the base's rows."""

    def observe(self, rows, base):
        return base.double().square().sum()

    def settle(self, observed):
        self.norm = sum(observed).sqrt().item()

    def write(self, rows, columns, base, out):
        out.copy_(base.roll(1, 1)[:, columns]).div_(self.norm)


@pytest.mark.parametrize("rules", [Rules(), Rules(normalize=True), Rules((PassRule("ties", 0.5),))])
def test_deltas_that_depend_on_the_base_see_the_original_one(make, rules):
    other, delta = make(2.0)
    parts = [Contribution(other.lora, [Seen(whole=False)], 3.0), other, Contribution(other.lora, [Seen(whole=False)], -1.0)]
    found, _, change = merged(parts, rules)
    base = weight().double()
    seen = base.roll(1, 1) / base.norm()
    deltas = [3.0 * seen, delta, -seen]
    want = combine64(rules.passes[0], deltas, parts) if rules.passes else sum(deltas)
    want = base + want
    want = want * (base.norm() / want.norm() if rules.normalize else 1.0)
    close = (found.double() - want).abs() <= 4e-6
    assert close.double().mean() > (0.9999 if rules.passes else 1 - 1e-12)   # a rank may fall otherwise in float32
    assert change.describe()[0]["kinds"] == ["dora"]


def test_adaptive_factors_are_taken_as_they_are_and_added_in_one_product(make, monkeypatch):
    (gated, _), (plain, delta) = make(0.5, rank=4, method="adaptive"), make(1.5, rank=3)
    up, down = torch.randn(SHAPE[0], 2), torch.randn(2, SHAPE[1])
    asked = []
    monkeypatch.setattr(merge, "gated_factors", lambda *what: asked.append(what) or ([Factors(up, down)], [{"tier": "new"}]))
    found, _, change = merged([plain, gated], Rules())
    assert asked == [(KEY, SHAPE, [gated], CPU)]
    assert torch.allclose(found.double(), weight().double() + delta + up.double() @ down.double(), rtol=0, atol=4e-6)
    assert change.joint is not None and change.describe()[1]["tier"] == "new"


def test_deltas_of_many_forms_in_one_lora_add_up(make):
    (factors, first), (dense, second) = make(rank=4), make()
    both = Contribution(factors.lora, [*factors.modules], 0.5)
    mixed = Contribution(dense.lora, [*dense.modules, *dense.modules], 0.5)
    found, *_ = merged([both, mixed], Rules())
    assert torch.allclose(found.double(), weight().double() + 0.5 * first + second, rtol=0, atol=2e-6)
