"""Shares of multiply-adds: counted by torch's own FlopCounter, and as sentences."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from wan22_master.engine.plans.cards import CARDS, UNITS
from wan22_master.engine.plans.plan import KEEP, Choice, block_linears
from wan22_master.engine.plans.shares import SEQUENCE, headline, lines, multiply_adds, percent, sequence, shares, speed
from wan22_master.engine.specs import TensorSpec
from wan22_master.engine.synthetic import Sizes, model_shapes
from wan22_master.tests.engine import tiny

MODEL = {key: TensorSpec(shape, torch.bfloat16) for key, shape in tiny.shapes().items()}
REAL = {key: TensorSpec(shape, torch.bfloat16) for key, shape in model_shapes(Sizes(dim=5120, ffn=13824, blocks=40)).items()}
LINEARS = block_linears(REAL)


def test_the_sequence_is_that_of_the_latents():
    assert sequence() == SEQUENCE == 21 * 30 * 52  # 81 frames of 832x480 by VAE 4x8x8, patch 1x2x2
    assert sequence(121, 704, 1280, spatial=16) == 31 * 22 * 40  # 5B


def test_the_counts_are_those_of_torch_on_the_products_of_a_forward_pass():
    tokens = {"text_embedding.0": 512, "time_projection.1": 1, "head.head": 90}
    counts = multiply_adds(MODEL, 90)
    with FlopCounterMode(display=False) as counter:
        for layer in counts:
            rows = tokens.get(layer, 512 if layer.endswith(("cross_attn.k", "cross_attn.v")) else 90)
            spec = MODEL[f"{layer}.weight"]
            torch.empty(rows, spec.shape[1], device="meta") @ torch.empty(spec.shape, device="meta").T
    assert 2 * sum(counts.values()) == counter.get_total_flops()
    assert not [layer for layer in counts if "norm" in layer or "patch" in layer]


@pytest.mark.parametrize(("layer", "tokens"), [
    ("blocks.0.cross_attn.k_img", 257), ("blocks.7.cross_attn.v_img", 257), ("img_emb.proj.1", 257), ("blocks.0.cross_attn.v", 512),
    ("blocks.0.self_attn.v", 90), ("blocks.0.cross_attn.q", 90), ("time_embedding.2", 1), ("vace_blocks.0.before_proj", 90)])
def test_tokens_that_a_layer_sees(layer, tokens):
    assert multiply_adds({f"{layer}.weight": TensorSpec((3, 5), torch.bfloat16)}, 90) == {layer: 15 * tokens}


@pytest.mark.parametrize("card", CARDS)
def test_shares_add_up_and_name_every_unit(card):
    choices = {layer: Choice(("nvfp4", "int8_tensorwise", KEEP)[number % 3]) for number, layer in enumerate(LINEARS)}
    found = shares(REAL, choices, card)
    assert tuple(found) == UNITS and sum(found.values()) == pytest.approx(1.0, abs=1e-12)


def test_a_plan_of_both_attentions_and_some_ffn_in_fp8_is_told_in_one_sentence():
    # both attentions and 15 of 40 ffn.2 in FP8
    fast = [layer for number, layer in enumerate(LINEARS) if "attn" in layer or (layer.endswith("ffn.2") and number < 150)]
    found = shares(REAL, {layer: Choice("float8_e4m3fn") for layer in fast}, "rtx40")
    assert headline(found, "rtx40") == "RTX 40: 62 % FP8, 38 % 16 bit: expect little speed over BF16"
    # out * in of a block: 4 + 2 of dim² (cross-attention's k and v see 512 tokens), ffn 2.7 dim² each; the rest is under 1 %
    assert found["fp8"] == pytest.approx((6 + 2 * 512 / SEQUENCE + 2.7 * 15 / 40) / (6 + 2 * 2.7), abs=0.01)
    assert percent(0.0) == "0 %" and percent(0.004) == "under 1 %"


def test_the_same_plan_promises_speed_on_one_card_and_none_on_another():
    plan = {layer: Choice("nvfp4") for layer in LINEARS}
    assert headline(shares(REAL, plan, "rtx50"), "rtx50") == (
        "RTX 50: 100 % FP4, under 1 % 16 bit: the linears up to 4.0x as fast as in BF16")
    assert headline(shares(REAL, plan, "rtx30"), "rtx30") == "RTX 30: 100 % 16 bit: expect little speed over BF16"


def test_speed_is_what_the_slow_share_leaves():
    assert speed({"fp8": 0.5, "16 bit": 0.5}, "rtx40") == pytest.approx(1 / (0.5 / 2 + 0.5))
    assert speed({"int8": 1.0}, "rdna") == speed({"int8": 1.0}, "cpu") == 1.0


def test_lines_say_which_layers_run_where_and_why():
    plan = {layer: Choice("nvfp4", full_precision=layer.endswith(("cross_attn.k", "cross_attn.v"))) for layer in LINEARS}
    plan |= {layer: Choice(KEEP) for layer in LINEARS if layer.startswith("blocks.0.")}
    head, *causes = lines(REAL, plan, "rtx50")
    assert head.startswith("RTX 50: 97 % FP4, 3 % 16 bit")
    assert causes[0].startswith("97 % FP4: ffn.0, ffn.2, ") and causes[0].endswith("nvfp4: FP4 tensor cores")
    assert causes[1].startswith("2 % 16 bit: ffn.0, ffn.2, ") and causes[1].endswith("kept: not quantized")
    assert causes[2].startswith("under 1 % 16 bit: cross_attn.k, cross_attn.v: nvfp4, emulated: full precision is asked for")
    assert causes[3].startswith("under 1 % 16 bit: text_embedding.2, ") and causes[3].endswith(" and 1 more: never quantized")
