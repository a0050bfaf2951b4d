"""Presets: what each card gets where, and what a shape forbids."""
import pytest
from wan22_master.engine.errors import RecipeError
from wan22_master.engine.plans import presets
from wan22_master.engine.plans.plan import KEEP, block_linears
from wan22_master.tests.engine.plans import models

# Formats that a card multiplies without dequantizing (ComfyUI model_management.py: supports_nvfp4_compute and its siblings).
NATIVE = {"blackwell": {"nvfp4", "mxfp8", "float8_e4m3fn", "int8_tensorwise"}, "ada": {"float8_e4m3fn", "int8_tensorwise"},
          "ampere": {"int8_tensorwise", "asym_w4a8_int8"}, "any": {"int8_tensorwise"}}
# Relative error on normal weights, by benchmarks/error.py (asym_w4a8_int8: comfy-kitchen's encoder), and bits per weight.
ERROR = {"nvfp4": 0.082, "asym_w4a8_int8": 0.0731, "float8_e4m3fn": 0.0265, "mxfp8": 0.0265, "int8_tensorwise": 0.0088, KEEP: 0.0}
BITS = {"nvfp4": 4.5, "asym_w4a8_int8": 4.5, "float8_e4m3fn": 8.0, "mxfp8": 8.25, "int8_tensorwise": 8.0, KEEP: 16.0}
EVERY = [(name, hardware) for hardware in presets.HARDWARE for name in presets.NAMES]


@pytest.mark.parametrize(("name", "hardware"), EVERY)
def test_every_layer_gets_what_its_card_computes_and_a_reason(name, hardware):
    model = models.model()
    found, notices = presets.choices(model, name, hardware)
    assert list(found) == list(block_linears(model)) and not notices
    assert {choice.format for choice in found.values()} <= NATIVE[hardware] | {KEEP}
    assert all(len(choice.reason) > 20 for choice in found.values())


@pytest.mark.parametrize("hardware", presets.HARDWARE)
def test_a_better_preset_never_has_more_weight_error(hardware):
    model = models.small()
    sizes = {layer: spec.numel for layer, spec in block_linears(model).items()}
    error = [sum(ERROR[choice.format] ** 2 * sizes[layer] for layer, choice in presets.choices(model, name, hardware)[0].items())
             for name in presets.NAMES]
    assert error[0] >= error[1] >= error[2]


@pytest.mark.parametrize(("name", "hardware"), EVERY)
def test_edge_blocks_v_and_ffn_2_are_never_less_precise_than_the_rest(name, hardware):
    found, _ = presets.choices(models.small(12), name, hardware)
    error = {layer: ERROR[choice.format] for layer, choice in found.items()}
    rest = error["blocks.5.self_attn.q"]
    for block in (0, 1, 2, 9, 10, 11):
        assert error[f"blocks.{block}.self_attn.q"] <= rest
    for layer in ("blocks.5.self_attn.v", "blocks.5.cross_attn.v", "blocks.5.ffn.2"):
        assert error[layer] <= rest
    assert found["blocks.2.ffn.0"].format == found["blocks.9.ffn.0"].format  # three on either side
    assert found["blocks.3.ffn.0"].format == found["blocks.8.ffn.0"].format == found["blocks.5.self_attn.q"].format


def test_nvfp4_of_the_text_multiplies_in_16_bit_and_nothing_else_does():
    for name, hardware in EVERY:
        for layer, choice in presets.choices(models.small(), name, hardware)[0].items():
            text = ".cross_attn.k" in layer or ".cross_attn.v" in layer
            assert choice.full_precision == (choice.format == "nvfp4" and text)


@pytest.mark.parametrize(("hardware", "name", "size"), [  # GB of block linears of a 14B expert, as the module's docstring says
    ("blackwell", "speed", 8.9), ("blackwell", "balanced", 10.9), ("blackwell", "quality", 16.2), ("ada", "balanced", 14.1),
    ("ampere", "speed", 10.7), ("any", "quality", 20.3)])
def test_the_sizes_of_a_14b_expert_are_those_of_the_docstring(hardware, name, size):
    model = models.model()
    linears = block_linears(model)
    bits = sum(BITS[choice.format] * linears[layer].numel for layer, choice in presets.choices(model, name, hardware)[0].items())
    assert bits / 8e9 == pytest.approx(size, abs=0.05)


def test_a_layer_that_a_format_cannot_hold_is_kept_with_the_reason():
    found, notices = presets.choices(models.model(dim=384, ffn=512, blocks=2), "balanced", "ada")
    assert {layer.rsplit(".", 2)[-1] + layer[-6:] for layer, choice in found.items() if choice.format != KEEP} == {"2.ffn.2"}
    assert "int8_tensorwise" in found["blocks.0.ffn.0"].reason and found["blocks.0.ffn.0"].reason.endswith(": keep")
    assert len(notices) == 1 and "18 layers" in notices[0] and "384" in notices[0]


def test_an_unknown_preset_or_card_is_refused():
    for name, hardware in (("best", "ada"), ("speed", "hopper")):
        with pytest.raises(RecipeError, match="speed or balanced or quality for blackwell or ada or ampere or any"):
            presets.choices(models.small(), name, hardware)
