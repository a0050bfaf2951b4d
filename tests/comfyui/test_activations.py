"""Activations as on another card: rounded by comfy-kitchen's own bits, where that card would, and nowhere else."""
import pytest
from test_preview import probe

HERE, RTX50, RTX40 = "as on this card", "as on RTX 50 (W4A4)", "as on RTX 40 (W8A8)"


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    return probe("activations_probe", tmp_path_factory.mktemp("activations"))


@pytest.mark.parametrize("name", ["nvfp4", "float8_e4m3fn", "float8_e5m2", "mxfp8"])
def test_a_rounded_input_is_bit_for_bit_comfy_kitchens_in_every_dtype_shape_and_banding(probed, name):
    assert probed[f"bits {name}"] == []


def test_zeros_stay_zeros_and_what_is_no_matrix_stays_as_it_is(probed):
    assert probed["zeros"] and probed["one dimension"]


def test_format_flag_and_scale_of_a_loaded_file_are_read_from_its_modules(probed):
    assert probed["layers_of"] == []


@pytest.mark.parametrize(("card", "rounded"), [("rtx50", 18), ("rtx40", 2)])
def test_in_the_model_each_layer_that_the_card_multiplies_gets_the_rounded_input(probed, card, rounded):
    found = probed[f"in the model {card}"]
    assert found["wrong"] == [] and found["calls"] == 18 and found["rounded"] == rounded
    assert found["batch"] == [2]                   # cond and uncond in one call
    name = {"rtx50": "RTX 50", "rtx40": "RTX 40"}[card]
    assert f"inputs of {rounded} of 18 quantized layers are rounded as on {name}" in found["text"]


def test_no_hook_is_left_after_a_call_nor_after_an_error_inside_it(probed):
    message, during, after, same = probed["after an error"]
    assert probed["in the model rtx50"]["hooks left"] == after == 0 and same
    assert message == "RuntimeError: in the middle" and during == 18 + 1      # and the one that raises


def test_clones_of_one_model_never_interfere_and_a_second_emulation_replaces_the_first(probed):
    assert probed["clones"] == [] and min(probed["all differ"]) > 1e-3


def test_as_on_this_card_changes_nothing_of_a_loaded_file(probed):
    assert probed["here"] == [True, "", True]


def test_an_input_scale_matters_in_w4a4_alone_and_only_when_it_is_too_small(probed):
    right, none, small, large = (probed[f"scale {name}"] for name in ("right", "none", "small", "large"))
    assert probed["unused here"]
    assert small > 3 * right                       # an eighth clips: .302 at a quarter against .095 for the layer itself
    assert abs(large - right) < 0.1 * right > abs(none - right)   # block scales take up 256 times; the rest is other rounding
    assert right > 0.02                            # W4A4 is not free: 4-bit blocks lose 0.095 of each input


def test_emulated_fp8_is_what_comfyui_multiplies_natively(probed):
    ours, without, twice, here = probed["native fp8"]
    assert ours < 1e-6 < 0.01 < without            # one order of float32 sums
    assert twice == 0 and here == 20               # never rounded twice; on a machine that can, plain layers count as its own


def test_a_native_layer_that_the_other_card_cannot_multiply_is_read_back_for_the_call(probed):
    same, text, still = probed["read back"]
    assert same and not still and "20 of 20 quantized layers run in 16 bit as there" in text


def test_layers_in_full_precision_are_not_rounded(probed):
    assert probed["full precision"] == [20, 0] and probed["preview 16 bit"] == 0


@pytest.mark.parametrize("name", ["int8", "rotated", "w4a4", "w4a8", "int8 whole"])
def test_integer_layers_of_a_plain_model_are_rounded_as_their_file_is_everywhere(probed, name):
    emulated, plain, layers, again = probed[f"integers {name}"]
    assert probed[f"product {name}"] < 2e-6        # float32 sums of 512, rotated back and forth
    # A sum that differs in its last bit can round to the next integer in the next layer: 1e-3 in a whole model
    assert emulated < plain / 3 and layers == 20 and again == 0


def test_where_int8_takes_a_weight_of_w4a4_its_input_keeps_8_bit(probed):
    forty, fifty, text = probed["w4a4 inputs"]     # comfy_kitchen/backends/cuda, convrot_w4a4_linear: no INT4 from SM 9.0 on
    assert (forty, fifty) == (["convrot_w4a4"], ["asym_w4a8_int8"]) and "rounded as on RTX 50 (convrot_w4a4)" in text


def test_an_e5m2_layer_that_no_card_multiplies_is_not_emulated(probed):
    assert probed["e5m2"] == [[], []]


def test_a_pre_quant_scale_is_applied_once_and_before_the_rounding(probed):
    assert probed["smoothed"] < 1e-6               # two more roundings in float32


def test_a_preview_is_emulated_as_the_file_it_stands_for_and_stays_a_preview(probed):
    assert probed["preview"] == [True, True, True, 0]


def test_a_layer_that_the_model_lacks_is_refused_by_name(probed):
    assert "SourceError: blocks.9.ffn.0: expected in the MODEL" in probed["unknown layer"]


def test_load_saved_tells_what_it_emulates(probed):
    assert probed[f"node {HERE}"] == ["loaded mixed.safetensors", 0] and probed["node as before"] == "loaded mixed.safetensors"
    assert probed[f"node {RTX50}"][1] == probed[f"node {RTX40}"][1] == 1
    assert "8 nvfp4 without an input scale take it from each input" in probed[f"node {RTX50}"][0]
    assert "1 float8 without an input scale are only clamped" in probed[f"node {RTX40}"][0]
