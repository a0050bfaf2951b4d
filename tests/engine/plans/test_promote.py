"""Layers in which the LoRAs would drown: up to the first step that is enough, or to 16 bit."""
import gguf
import pytest
from wan22_master.engine.plans.plan import KEEP, Choice, one_format
from wan22_master.engine.plans.promote import FOUR_BITS, ladder, promote, wanted
from wan22_master.quant.formats import BLOCK_TYPES, QUANTIZED, form_of

LAYER, OTHER = "blocks.0.self_attn.q", "blocks.1.ffn.2"

EIGHT_BITS = ("mxfp8", "float8_e4m3fn", "int8_tensorwise")


def raised(choice, effects, threshold=1.0, eight="mxfp8"):
    found, notices = promote({LAYER: choice}, {LAYER: effects} if effects is not None else {}, threshold, eight)
    return found[LAYER], notices


@pytest.mark.parametrize("eight", EIGHT_BITS)
@pytest.mark.parametrize("four", sorted(FOUR_BITS))
def test_four_bits_go_to_eight_where_that_is_enough_and_else_to_sixteen(four, eight):
    for effects, step in (({four: 0.5, eight: 1.5}, eight), ({four: 0.5, eight: 1.0}, eight), ({four: 0.5, eight: 0.99}, KEEP),
                          ({four: 0.5}, KEEP), ({four: 1.0, eight: 9.0}, four), ({four: 7.0}, four)):
        found, notices = raised(Choice(four, reason="a preset"), effects, eight=eight)
        assert found.format == step and bool(notices) == (step != four)
        assert found.reason == ("a preset" if step == four else
                                f"{four} would drown the LoRAs: effect over noise 0.50, under 1")


@pytest.mark.parametrize("eight", EIGHT_BITS)
def test_eight_bits_go_to_sixteen(eight):
    found, notices = raised(Choice(eight), {eight: 0.2, "mxfp8": 9.0} | {eight: 0.2}, eight=eight)
    assert found.format == KEEP
    assert notices == [f"1 layers raised from {eight} to 16 bit: the LoRAs would drown in its noise"]
    assert ladder(KEEP, eight) == ()


def test_what_is_kept_not_merged_or_not_tried_stays():
    for choice, effects in ((Choice(KEEP), {"nvfp4": 0.0}), (Choice("nvfp4"), None), (Choice("nvfp4"), {}),
                            (Choice("nvfp4"), {"mxfp8": 0.1})):
        assert raised(choice, effects) == (choice, [])


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_the_threshold_decides_and_zero_raises_nothing(threshold):
    found, _ = raised(Choice("nvfp4"), {"nvfp4": 0.5, "mxfp8": 2.0}, threshold)
    assert found.format == "nvfp4"
    assert raised(Choice("nvfp4"), {"nvfp4": 0.5, "mxfp8": 2.0}, 0.51)[0].format == "mxfp8"


def test_products_in_sixteen_bit_go_along_until_nothing_is_quantized():
    assert raised(Choice("nvfp4", full_precision=True), {"nvfp4": 0.1, "mxfp8": 2.0})[0].full_precision
    assert not raised(Choice("nvfp4", full_precision=True), {"nvfp4": 0.1, "mxfp8": 0.2})[0].full_precision


def test_moves_are_counted_by_step_and_the_choices_given_stay_as_they_are():
    choices = {f"blocks.{n}.ffn.0": Choice("nvfp4") for n in range(6)} | {OTHER: Choice("mxfp8")}
    before = dict(choices)
    effects = {f"blocks.{n}.ffn.0": {"nvfp4": 0.5, "mxfp8": 2.0 if n < 4 else 0.6} for n in range(5)} | {OTHER: {"mxfp8": 0.1}}
    found, notices = promote(choices, effects, 1.0, "mxfp8")
    assert notices == ["4 layers raised from nvfp4 to mxfp8: the LoRAs would drown in its noise",
                       "1 layers raised from nvfp4 to 16 bit: the LoRAs would drown in its noise",
                       "1 layers raised from mxfp8 to 16 bit: the LoRAs would drown in its noise"]
    assert choices == before and list(found) == list(choices)
    assert [each.format for each in found.values()] == ["mxfp8"] * 4 + [KEEP, "nvfp4", KEEP]


def test_what_may_be_asked_for_is_tried():
    assert wanted({"nvfp4", KEEP}, "mxfp8") == ("nvfp4", "mxfp8") and wanted({KEEP}, "mxfp8") == ()
    assert wanted({"float8_e4m3fn"}, "mxfp8") == ("float8_e4m3fn",) and wanted({"mxfp8", "nvfp4"}, "mxfp8") == ("mxfp8", "nvfp4")
    for form in QUANTIZED:
        for eight in EIGHT_BITS:
            assert set(ladder(form, eight)) - {KEEP} <= set(wanted({form}, eight))


@pytest.mark.parametrize("name", BLOCK_TYPES)
def test_a_type_of_gguf_under_eight_bits_goes_to_q8_0_and_that_to_sixteen(name):
    size, nbytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    narrow = 8 * nbytes / size < 8
    assert ladder(name, "Q8_0") == (("Q8_0", KEEP) if narrow else (KEEP,))
    assert set(wanted({name}, "Q8_0")) == {name, "Q8_0"}
    assert raised(Choice(name), {name: 0.5, "Q8_0": 1.5 if narrow else 0.5}, eight="Q8_0")[0].format == ("Q8_0" if narrow else KEEP)


def test_the_four_bit_formats_are_those_of_half_a_byte_a_weight():
    shape = (128, 512)
    sizes = {name: form_of(name).outputs(shape)[""] for name in QUANTIZED}
    halves = {name for name, (stored, dtype) in sizes.items() if stored[0] * stored[1] * dtype.itemsize == 128 * 256}
    assert halves == FOUR_BITS and set(EIGHT_BITS) <= QUANTIZED - FOUR_BITS
    assert all(one_format(name, "x") == name for name in FOUR_BITS | set(EIGHT_BITS))
