"""ConvRot: comfy-kitchen's matrix, multiplied in float64, is the oracle."""
import pytest
import torch
from comfy_kitchen.backends.eager.quantization import rotate_int8_convrot_weight
from comfy_kitchen.tensor.int8_utils import _build_hadamard
from wan22_master.quant.rotation import require_groups, rotate

SHAPES = [(1, 256), (3, 512), (130, 768), (200, 5120), (9, 13824)]


def of(shape: tuple[int, int]) -> torch.Tensor:
    """Gaussian weights, float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rotation_is_comfy_kitchens_to_the_last_bits(shape):
    weight = of(shape)
    exact = (weight.double().view(-1, 256) @ _build_hadamard(256).double().T).view(shape)
    # 12 additions, each rounded by at most half an ulp of a sum under 8 (measured: 6), a sixteenth each of which is 8 * 2**-25.
    assert (rotate(weight) - exact).abs().max() < 12 * 8 * 2 ** -25
    assert (rotate(weight) - exact).abs().max() <= (rotate_int8_convrot_weight(weight, 256) - exact).abs().max()


def test_rotating_twice_gives_the_weight_back():
    weight = of((130, 768))
    assert torch.allclose(rotate(rotate(weight)), weight, rtol=0, atol=2 * 12 * 8 * 2 ** -25)     # twice the bound above


def test_integers_are_rotated_exactly():
    weight = (16 * of((5, 512))).round()                      # sums of 256 of them fit into 24 bits, and 1/16 is a power of two
    exact = weight.double().view(-1, 256) @ _build_hadamard(256).double().T
    assert torch.equal(rotate(weight).double(), exact.view(5, 512))


@pytest.mark.parametrize("columns", [256, 5120, 13824])
def test_bits_depend_neither_on_the_bands_nor_on_the_threads(columns):
    weight = of((300, columns))
    whole, threads = rotate(weight), torch.get_num_threads()
    assert torch.equal(torch.cat([rotate(weight[start:start + 128]) for start in (0, 128, 256)]), whole)
    torch.set_num_threads(1)
    try:
        assert torch.equal(rotate(weight), whole)
    finally:
        torch.set_num_threads(threads)


def test_the_weight_is_kept_unless_it_is_the_place_to_write_to():
    weight = of((4, 512))
    before, rotated = weight.clone(), rotate(weight)
    assert torch.equal(weight, before)
    assert rotate(weight, out=weight) is weight
    assert torch.equal(weight, rotated)


@pytest.mark.parametrize("shape", [(4, 200), (4, 0), (256,), (2, 256, 256)], ids=str)
def test_widths_without_groups_are_refused_with_a_way_out(shape):
    with pytest.raises(ValueError, match=r"convrot_w4a4 rotates 256 .*choose float8_e4m3fn"):
        require_groups(shape, "convrot_w4a4")
