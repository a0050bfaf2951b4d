"""Which layers share an input: checked against what a model of Wan's wiring really passes to its linears."""
import torch
from wan22_master.engine.calibration.points import points_of
from wan22_master.tests.engine import tiny


class Wired(torch.nn.Module):
    """Two blocks wired as Wan's are (ComfyUI comfy/ldm/wan/model.py), with an identity for attention."""

    def __init__(self):
        super().__init__()
        self.linears = torch.nn.ModuleDict({name.replace(".", "/"): torch.nn.Linear(8, 8) for name in tiny.linears()})

    def forward(self, x, text):
        for block in range(tiny.BLOCKS):
            part = {name: self.linears[f"blocks/{block}/{name.replace('.', '/')}"] for name in [*tiny.ATTENTION, "ffn.0", "ffn.2"]}
            y = x * 0.5
            x = x + part["self_attn.o"](part["self_attn.q"](y) + part["self_attn.k"](y) + part["self_attn.v"](y))
            y = x + 1.0
            seen = (part["cross_attn.k"](text) + part["cross_attn.v"](text)).sum(0)
            x = x + part["cross_attn.o"](part["cross_attn.q"](y) + seen)
            x = x + part["ffn.2"](part["ffn.0"](x * 2.0))
        return x


def test_a_point_is_exactly_the_layers_that_are_passed_one_tensor():
    torch.manual_seed(0)
    model, seen = Wired(), {}
    for name, layer in model.linears.items():
        layer.register_forward_pre_hook(
            lambda _, args, name=name: seen.setdefault(id(args[0]), (args[0], []))[1].append(name.replace("/", ".")))
    with torch.no_grad():
        model(torch.randn(3, 8), torch.randn(5, 8))
    found = points_of(tiny.linears())
    assert {frozenset(layers) for layers in found.values()} == {frozenset(names) for _, names in seen.values()}
    assert len(found) == 6 * tiny.BLOCKS + 1


def test_a_point_is_named_by_its_first_layer_and_points_keep_the_models_order():
    found = points_of(["blocks.1.ffn.0", "blocks.1.cross_attn.v", "blocks.0.cross_attn.k", "head.head", "blocks.1.ffn.0"])
    assert found == {"blocks.1.ffn.0": ("blocks.1.ffn.0",), "head.head": ("head.head",),
                     "blocks.1.cross_attn.v": ("blocks.1.cross_attn.v", "blocks.0.cross_attn.k")}
    assert list(found) == ["blocks.1.ffn.0", "blocks.1.cross_attn.v", "head.head"]
