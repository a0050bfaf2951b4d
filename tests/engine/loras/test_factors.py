"""Factors side by side, their inner products and cores, against float64."""

import pytest
import torch
from wan22_master.engine.errors import LoraError
from wan22_master.engine.loras.factors import Factors, expand, load_factors, read_difference, read_tensor
from wan22_master.engine.loras.modules import Pair
from wan22_master.tests.engine.loras.adapters import laid, oracle

CPU = torch.device("cpu")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.manual_seed(seed))


def lora(tmp_path, **tensors):
    return laid.write(tmp_path / "some.safetensors", {name.replace("_", "."): tensor for name, tensor in tensors.items()})


def test_pairs_and_cores_lie_side_by_side_with_their_scalars_in_up(tmp_path):
    shape = (16, 6, 1, 2, 2)
    tensors = {
        "lora.up.weight": draw(16, 3),
        "lora.mid": draw(3, 4, 1, 2, 2),
        "lora.down.weight": draw(4, 6, 1, 1, 1),
        "a": draw(16, 2),
        "b": draw(2, 24),
    }
    file = laid.write(tmp_path / "some.safetensors", tensors)
    first, second = Pair("lora.up.weight", "lora.down.weight", None, 3, 0.5, "", "lora.mid"), Pair("a", "b", None, 2, 2.0, "")
    factors = load_factors(shape, [(file, first, 0.7), (file, second, -1.0)], CPU)
    assert (factors.up.shape, factors.down.shape, factors.up.dtype) == ((16, 5), (5, 24), torch.float32)
    one = 0.7 * oracle.lora(shape, tensors["lora.up.weight"], tensors["lora.down.weight"], 2.0, tensors["lora.mid"])
    two = -2.0 * oracle.lora(shape, tensors["a"], tensors["b"])
    whole = torch.empty(16, 24)
    factors.product((0, 16), slice(0, 24), whole)
    assert laid.error(whole.double().reshape(shape), one + two) < 1e-6
    part = torch.empty(3, 5)
    factors.part(0, 3).product((2, 5), slice(7, 12), part)
    assert laid.error(part.double(), one.reshape(16, 24)[2:5, 7:12]) < 1e-6


def test_inner_products_are_those_of_the_full_deltas():
    one, two = (Factors(draw(20, 3, seed=n), draw(3, 30, seed=n + 1)) for n in (1, 5))
    found = one.inner(two).sum().item()
    expected = ((one.up.double() @ one.down.double()) * (two.up.double() @ two.down.double())).sum().item()
    assert found == pytest.approx(expected, rel=1e-5)  # float32 products of 20 and 30 terms


def test_a_core_is_multiplied_in_for_any_kernel():
    for kernel in ((), (3,), (2, 3), (1, 2, 2)):
        core, down = draw(3, 4, *kernel), draw(4, 5, *[1] * len(kernel), seed=2)
        expected = torch.einsum("mn...,nj->mj...", core.double(), down.double().reshape(4, 5))
        assert laid.error(expand(core, down).double(), expected) < 1e-7


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_named(tmp_path, value):
    tensor = draw(6, 4)
    tensor[4, 1] = value
    file = laid.write(tmp_path / "some.safetensors", {"x.lora_up.weight": tensor})
    for read in (lambda: read_tensor(file, "x.lora_up.weight"), lambda: read_difference(file, "x.lora_up.weight", (4, 6), CPU)):
        with pytest.raises(LoraError, match=r"some\.safetensors: x\.lora_up\.weight: expected finite numbers"):
            read()
    assert torch.equal(read_difference(file, "x.lora_up.weight", (0, 4), CPU), tensor[:4])
