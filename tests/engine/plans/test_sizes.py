"""Predicted bytes against tensors that were made, and against published sizes of a 14B expert."""

import pytest
import torch
from wan22_master.engine.plans.plan import KEEP, block_linears
from wan22_master.engine.plans.sizes import candidate_bytes, layer_bytes, rest_bytes
from wan22_master.engine.specs import TensorSpec
from wan22_master.engine.synthetic import Sizes, model_shapes
from wan22_master.quant.formats import FORMATS, quantize
from wan22_master.tests.engine import tiny


class FourBit:
    """Half a byte and a scale for 16 columns, as nvfp4; nothing but multiples of 16."""

    @staticmethod
    def outputs(shape):
        if shape[1] % 16:
            raise ValueError("in_features: expected a multiple of 16")
        return {"": ((shape[0], shape[1] // 2), torch.uint8), "_scale": ((shape[0], shape[1] // 16), torch.float8_e4m3fn),
                "_scale_2": ((), torch.float32)}


FP8 = FORMATS["float8_e4m3fn"]
FORMS = {"float8_e4m3fn": FP8, "nvfp4": FourBit}
MODEL = {key: TensorSpec(shape, torch.bfloat16) for key, shape in tiny.shapes().items()}


def kept(key):
    return MODEL[key].nbytes


def test_a_layer_is_as_large_as_what_the_format_makes_of_it():
    made = quantize(torch.randn(48, 32), "float8_e4m3fn")
    assert layer_bytes(FP8, (48, 32)) == sum(tensor.numel() * tensor.element_size() for tensor in made.values()) == 48 * 32 + 4


def test_the_rest_and_the_candidates_make_up_a_model():
    table = candidate_bytes(MODEL, ["nvfp4", KEEP], FORMS, kept)
    assert list(table) == list(block_linears(MODEL))
    assert rest_bytes(MODEL, kept) + sum(row[KEEP] for row in table.values()) == sum(spec.nbytes for spec in MODEL.values())


def test_a_format_that_cannot_hold_a_shape_is_no_candidate_there():
    shapes = {"blocks.0.ffn.0.weight": (32, 24), "blocks.0.ffn.2.weight": (24, 32)}
    model = {key: TensorSpec(shape, torch.bfloat16) for key, shape in shapes.items()}
    eight, four = {"float8_e4m3fn": 24 * 32 + 4}, {"nvfp4": 24 * 16 + 24 * 2 + 4}
    table = candidate_bytes(model, ["nvfp4", "float8_e4m3fn"], FORMS, kept)
    assert table == {"blocks.0.ffn.0": eight, "blocks.0.ffn.2": four | eight}
    with pytest.raises(ValueError, match="multiple of 16"):
        layer_bytes(FourBit, (32, 24))


@pytest.mark.parametrize(("name", "gigabytes"), [("float8_e4m3fn", 14.5), ("nvfp4", 8.4)])
def test_a_14b_expert_is_as_large_as_published_files(name, gigabytes):
    shapes = model_shapes(Sizes(dim=5120, ffn=13824, blocks=40))
    model = {key: TensorSpec(shape, torch.bfloat16) for key, shape in shapes.items()}
    table = candidate_bytes(model, [name], FORMS, lambda key: model[key].nbytes)
    size = rest_bytes(model, lambda key: model[key].nbytes) + sum(row[name] for row in table.values())
    assert size / 1e9 == pytest.approx(gigabytes, abs=0.05)  # published to one decimal
