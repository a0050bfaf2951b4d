"""Hooks of Calibrate on modules of plain torch: which inputs are one point, and that no hook outlives its pass."""
import pytest
import torch
from wan22_master.engine.calibration.points import points_of
from wan22_master.nodes.calibration_hooks import Verified, bypassed, largest, linears, watched

QKV = ("blocks.0.self_attn.q", "blocks.0.self_attn.k", "blocks.0.self_attn.v")
TEXT = tuple(f"blocks.{block}.cross_attn.{part}" for block in range(3) for part in "kv")


class Network(torch.nn.Module):
    """A head, and a block with two linears, of which the second is fed twice the first's input."""

    def __init__(self):
        super().__init__()
        self.head, self.blocks = torch.nn.Linear(4, 4), torch.nn.ModuleList([torch.nn.ModuleDict(
            {"one": torch.nn.Linear(4, 4), "two": torch.nn.Linear(4, 4)})])
        self.norm = torch.nn.LayerNorm(4)

    def forward(self, x):
        return self.head(self.blocks[0]["two"](2 * self.blocks[0]["one"](x)))


def hooks(network) -> int:
    return sum(len(module._forward_pre_hooks) for module in network.modules())


def test_every_linear_and_nothing_else_is_found_by_its_name():
    assert list(linears(Network())) == ["head", "blocks.0.one", "blocks.0.two"]
    assert list(linears(Network(), only_blocks=True)) == ["blocks.0.one", "blocks.0.two"]


def test_an_input_is_seen_as_the_model_made_it_before_other_hooks_change_it():
    network, seen = Network(), {}
    network.head.register_forward_pre_hook(lambda module, args: (args[0] * 100,))
    x = torch.randn(2, 3, 4)
    with watched(linears(network), lambda name, given: seen.update({name: given})):
        network(x)
    two = network.blocks[0]["two"]
    assert torch.equal(seen["head"], two(2 * network.blocks[0]["one"](x)).detach())
    assert list(seen) == ["blocks.0.one", "blocks.0.two", "head"]


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_no_hook_is_left_after_success_error_and_interrupt(error):
    network, during = Network(), []

    def see(name, x):
        during.append(hooks(network))
        if error and name == "head":
            raise error

    if error is None:
        with watched(linears(network), see):
            network(torch.ones(1, 4))
    else:
        with pytest.raises(error), watched(linears(network), see):
            network(torch.ones(1, 4))
    assert during == [3, 3, 3] and hooks(network) == 0


def test_a_module_that_takes_no_hook_leaves_none_on_the_others():
    network = Network()
    with pytest.raises(AttributeError), watched({**linears(network), "none": None}, lambda name, x: None):
        pass
    assert hooks(network) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_largest_value_is_exact_for_each_of_the_batch_and_of_either_sign(dtype):
    x = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[1, 2, 3], x[2, 0, 0] = -9.5, 8.25
    assert torch.equal(largest(x), x.abs().amax(dim=(1, 2)))


def told(inputs: dict[str, torch.Tensor]) -> tuple[Verified, list[str]]:
    """Points by these inputs in this order, and what was recorded."""
    recorded: list[str] = []
    first = Verified(points_of(inputs), lambda name, x: recorded.append(name))
    for name, x in inputs.items():
        first.see(name, x)
    return first, recorded


def test_layers_that_see_equal_inputs_are_one_point_and_are_recorded_once():
    x = torch.randn(2, 4)
    first, recorded = told(dict.fromkeys(QKV, x) | {"blocks.0.self_attn.o": x})
    assert recorded == [QKV[0], "blocks.0.self_attn.o"] and first.alone == []
    assert first.points() == {QKV[0]: QKV, "blocks.0.self_attn.o": ("blocks.0.self_attn.o",)}


def test_a_block_with_a_text_of_its_own_becomes_points_of_its_own_that_miss_no_pass():
    text, other = torch.randn(2, 4), torch.randn(2, 4)
    first, recorded = told({name: other if "blocks.1" in name else text for name in TEXT})
    assert first.alone == ["blocks.1.cross_attn.k", "blocks.1.cross_attn.v"] and recorded == [TEXT[0], *first.alone]
    assert first.points() == {TEXT[0]: (*TEXT[:2], *TEXT[4:]), **{name: (name,) for name in first.alone}}


def test_equal_halves_in_another_order_are_another_input():
    x = torch.tensor([[1.0, 2.0], [3.0, 1.0]])
    assert told({QKV[0]: x, QKV[1]: x.flip(0)})[0].alone == [QKV[1]]


def test_a_last_bit_is_another_input_and_a_nan_is_the_same_as_itself():
    x = torch.full((1, 4), 1.0)
    assert told({QKV[0]: x, QKV[1]: torch.nextafter(x, torch.tensor(2.0))})[0].alone == [QKV[1]]
    broken = torch.full((1, 4), torch.nan)
    assert told({QKV[0]: broken, QKV[1]: broken.clone()})[0].alone == []


def test_a_layer_whose_point_was_not_called_counts_by_itself_and_a_layer_that_was_not_called_has_no_point():
    recorded: list[str] = []
    first = Verified(points_of([*QKV, "head.head"]), lambda name, x: recorded.append(name))
    first.see(QKV[1], torch.ones(1, 4))
    assert first.points() == {QKV[1]: (QKV[1],)} and recorded == [QKV[1]]


def test_int8_layers_behind_a_gelu_are_known_to_be_passed_by():
    def module(layout):
        found = torch.nn.Linear(1, 1)
        found.weight._layout_cls = layout
        return found

    modules = {"blocks.0.ffn.2": module("TensorWiseINT8Layout"), "blocks.0.ffn.0": module("TensorWiseINT8Layout"),
               "blocks.1.ffn.2": module("TensorCoreNVFP4Layout"), "blocks.2.ffn.2": torch.nn.Linear(1, 1)}
    assert bypassed(modules) == ["blocks.0.ffn.2"]
