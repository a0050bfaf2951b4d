import math

import pytest
import torch
from given import contributions, dense64, full, pair
from wan22_master.engine.analysis.compare import compare
from wan22_master.engine.analysis.exact import chance, dense, low_rank, products
from wan22_master.engine.analysis.layer import open_layer, stack
from wan22_master.engine.analysis.scratch import Scratch
from wan22_master.engine.errors import LoraError
from wan22_master.engine.specs import TensorSpec

SHAPE = (96, 160)


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def opened(members, shape=SHAPE):
    return open_layer("blocks.0.ffn.0.weight", TensorSpec(shape, torch.bfloat16), contributions(*members))


def gram64(members) -> torch.Tensor:
    flat = torch.stack([dense64(*member).reshape(-1) for member in members])
    return flat @ flat.t()


@pytest.fixture
def members():
    """Ranks that differ, a negative strength, an alpha, a LoRA of two pairs."""
    draw = random(0)
    shared = pair(draw, SHAPE, 4)
    both = [pair(draw, SHAPE, 1), shared]
    return [(1.0, [shared]), (-0.5, [pair(draw, SHAPE, 8, 3.0)]), (0.3, both), (2.0, [pair(draw, SHAPE, 16)])]


def test_the_gram_matrix_from_factors_is_that_of_the_full_deltas(members):
    exact, wanted = low_rank(stack(opened(members), Scratch()), Scratch()).gram, gram64(members)
    scale = torch.outer(wanted.diagonal().sqrt(), wanted.diagonal().sqrt())
    assert ((exact - wanted).abs() / scale).max() < 1e-6             # float32 products of 160 terms, summed in float64
    assert torch.equal(exact, exact.t())


def test_the_gram_matrix_by_tiles_is_the_same_also_with_full_differences(members):
    difference = torch.randn(SHAPE, generator=random(9))
    members = [*members, (0.7, [full(difference)]), (1.0, [members[0][1][0], full(difference)])]
    layer = opened(members)
    assert not layer.is_low_rank
    exact, wanted = dense(layer), gram64(members)
    scale = torch.outer(wanted.diagonal().sqrt(), wanted.diagonal().sqrt())
    assert ((exact.gram - wanted).abs() / scale).max() < 1e-6        # as above
    assert exact.outputs is None and exact.inputs is None


def test_the_overlaps_are_those_of_the_full_deltas_second_moments(members):
    exact = low_rank(stack(opened(members), Scratch()), Scratch())
    deltas = [dense64(*member) for member in members]
    for found, moments in ((exact.outputs, [d @ d.t() for d in deltas]), (exact.inputs, [d.t() @ d for d in deltas])):
        wanted = torch.tensor([[(one * other).sum() for other in moments] for one in moments])
        scale = torch.outer(wanted.diagonal().sqrt(), wanted.diagonal().sqrt())
        assert ((found - wanted).abs() / scale).max() < 1e-6


def test_a_tensor_of_one_axis_is_compared_by_tiles():
    bias = torch.randn(96, generator=random(1)), torch.randn(96, generator=random(2))
    layer = opened([(1.0, [full(bias[0])]), (-2.0, [full(bias[1])])], (96,))
    assert dense(layer).gram[0, 1].item() == pytest.approx(-2 * torch.dot(*bias).item(), rel=1e-5)


def test_products_without_onednn_are_the_same(monkeypatch):
    stacked, spans = torch.randn(24, 96, generator=random(3)), [(0, 4), (4, 20), (20, 24)]
    one = products(stacked, spans, torch.empty(24, 24))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    other, wanted = products(stacked, spans, torch.empty(24, 24)), stacked.double() @ stacked.double().t()
    assert (one - wanted).abs().max() < 1e-4 and (other - wanted).abs().max() < 1e-4    # 96 float32 terms up to 10
    assert torch.equal(one[4:, :4], one[:4, 4:].t())                  # computed once, mirrored


def test_what_needs_the_base_or_the_merge_is_left_out_and_told():
    from given import Given

    layer = opened([(1.0, [Given("dora", "base", ())]), (1.0, [Given("oft", "transform", ()), full(torch.ones(SHAPE))])])
    assert layer.who == [1]
    assert [(who, kind) for who, kind, _ in layer.left_out] == [(0, "dora"), (1, "oft")]


def test_a_delta_that_overflows_is_refused_by_the_names_of_its_lora_and_tensor():
    draw = random(4)
    members = [(1.0, [pair(draw, SHAPE, 4)]), (1.0, [pair(draw, SHAPE, 4, 1e30)])]
    with pytest.raises(LoraError, match=r"^1\.safetensors: blocks\.0\.ffn\.0\.weight: .*overflows"):
        compare("blocks.0.ffn.0.weight", TensorSpec(SHAPE, torch.bfloat16), contributions(*members), Scratch())


def test_chance_is_the_angle_as_a_share_of_half_a_turn():
    gram = torch.tensor([[1.0, -1.0, 0.0], [-1.0, 4.0, 2.0], [0.0, 2.0, 4.0]], dtype=torch.float64)
    assert chance(gram)[0, 1].item() == pytest.approx(math.acos(-0.5) / math.pi)
    assert chance(gram)[1, 2].item() == pytest.approx(1 / 3)
    assert chance(torch.zeros(2, 2, dtype=torch.float64))[0, 1].item() == 0.5
