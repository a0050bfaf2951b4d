"""Lists and switches for 16-bit products: which layers they mean, and what is told about the rest."""
import pytest
from wan22_master.engine.plans.layer_lists import SWITCHES, apply, parse
from wan22_master.engine.plans.plan import KEEP, Choice, block_linears
from wan22_master.tests.engine.plans import models

MODEL = models.small(12)
BASE = {layer: Choice(KEEP if layer.startswith("blocks.0.") else "float8_e4m3fn") for layer in block_linears(MODEL)}


def test_a_list_is_read_by_the_line_whatever_stands_around_a_name():
    text = "# high\r\n\r\nblocks.3.ffn.2\r\n  model.diffusion_model.blocks.4.self_attn.q.weight  \nblocks.3.ffn.2\n"
    assert parse(text, MODEL, "a.txt") == (["blocks.3.ffn.2", "blocks.4.self_attn.q"], [])


@pytest.mark.parametrize(("line", "parts"), [  # the fused lines of the original's three files
    ("blocks.5.self_attn.oblocks.0.cross_attn.k", ["blocks.5.self_attn.o", "blocks.0.cross_attn.k"]),
    ("blocks.8.ffn.0blocks.0.cross_attn.k", ["blocks.8.ffn.0", "blocks.0.cross_attn.k"]),
    ("blocks.1.ffn.0blocks.11.ffn.0blocks.2.ffn.2.weight", ["blocks.1.ffn.0", "blocks.11.ffn.0", "blocks.2.ffn.2"]),
])
def test_two_names_in_one_line_are_both_taken_and_told(line, parts):
    layers, notices = parse(f"{line}\nblocks.9.ffn.2\n", MODEL, "high.txt")
    assert layers == [*parts, "blocks.9.ffn.2"]
    assert notices == [f"high.txt: 1 lines hold two names pasted together, taken as both: {line.removesuffix('.weight')}"]


def test_a_vace_block_is_not_torn_from_its_prefix():
    model = MODEL | {f"vace_{key}": spec for key, spec in MODEL.items() if key.startswith("blocks.0.")}
    assert parse("vace_blocks.0.ffn.0\n", model, "a.txt") == (["vace_blocks.0.ffn.0"], [])
    assert parse("blocks.3.ffn.0vace_blocks.0.ffn.2\n", model, "a.txt")[0] == ["blocks.3.ffn.0", "vace_blocks.0.ffn.2"]


def test_norms_other_tensors_and_typos_are_told_apart():
    names = ["blocks.3.self_attn.norm_q", "head.head", "patch_embedding", "blocks.3.modulation", "blocks.3.self_atn.q", "zebra"]
    layers, notices = parse("\n".join(names), MODEL, "a.txt")
    assert layers == [] and len(notices) == 3
    assert "1 names are norms" in notices[0]
    assert "3 names are of tensors outside" in notices[1] and "blocks.3.modulation" in notices[1]
    assert "2 names are not in this model: blocks.3.self_atn.q (did you mean blocks.3.self_attn.q?), zebra" in notices[2]


def test_half_of_a_fused_line_that_is_unknown_is_told_too():
    layers, notices = parse("blocks.5.self_attn.oblocks.77.ffn.0\n", MODEL, "a.txt")
    assert layers == ["blocks.5.self_attn.o"] and len(notices) == 2 and "blocks.77.ffn.0" in notices[1]


@pytest.mark.parametrize(("switch", "names"), [
    ("cross_attn_kv", ["cross_attn.k", "cross_attn.v"]), ("ffn_up", ["ffn.0"]), ("ffn_down", ["ffn.2"]),
    ("cross_attn_qkvo", [f"cross_attn.{part}" for part in "qkvo"]), ("self_attn_qkvo", [f"self_attn.{part}" for part in "qkvo"])])
def test_a_switch_means_these_layers_of_every_block_that_is_quantized(switch, names):
    found, notices = apply(BASE, [], [switch])
    assert {layer for layer, choice in found.items() if choice.full_precision} == {
        f"blocks.{block}.{name}" for block in range(1, 12) for name in names}
    assert not notices and found[f"blocks.1.{names[0]}"].reason == f"switch {switch}: products in 16 bit"


def test_a_listed_layer_that_is_kept_is_told_and_not_marked():
    found, notices = apply(BASE, ["blocks.0.ffn.0", "blocks.1.ffn.0"], list(SWITCHES), "a.txt")
    assert not found["blocks.0.ffn.0"].full_precision and found["blocks.1.ffn.0"].full_precision
    assert notices == ["a.txt: 1 layers are not quantized, so the list changes nothing there: blocks.0.ffn.0"]
