import pytest
from wan22_master.engine.errors import LoraError
from wan22_master.engine.loras.adapters import SUFFIXES
from wan22_master.engine.loras.file_dialect import read_dialect
from wan22_master.engine.loratools.reading import FileModule
from wan22_master.engine.loratools.spelling import DIALECTS
from wan22_master.engine.loratools.suffixes import alike
from wan22_master.engine.loratools.wan_layers import check_unambiguous, is_bare, wan_index, wan_keys
from wan22_master.engine.synthetic import Sizes, model_shapes

NOT_IN_DIFFUSERS = ("audio", "music", "face_adapter", "control_adapter", "refimage", "_global", "pose_", "_pose", "cond_", "ref_c")
LAYERS = [key.removesuffix(".weight") for key in wan_keys(3)]


def test_the_table_holds_every_layer_of_a_real_model():
    layers = {key.removesuffix(".weight").removesuffix(".bias") for key in model_shapes(Sizes(blocks=40))}
    assert layers <= {key.removesuffix(".weight") for key in wan_keys(40)}


@pytest.mark.parametrize("name", DIALECTS)
def test_every_name_that_is_written_is_read_back_as_the_same_layer(name):
    to, index = DIALECTS[name], wan_index([])
    for role in ("high_noise", "low_noise"):
        layers = [layer for layer in LAYERS if not to.is_peft or not any(word in layer for word in NOT_IN_DIFFUSERS)]
        written = {layer: to.module(layer, role if to.holds_both else None) for layer in layers}
        assert len(set(written.values())) == len(layers) > 130
        dialect = read_dialect(written.values())
        assert [index.place(module, dialect).layer for module in written.values()] == layers


@pytest.mark.parametrize("name", DIALECTS)
def test_every_part_of_every_adapter_is_written_so_that_it_is_read_as_the_same_part(name):
    to = DIALECTS[name]
    for part in {alike(part) for part in SUFFIXES.values()}:
        module = FileModule("m", "blocks.0.self_attn.q", None, {part: "key"})
        if to.why_not(module, part) is None:
            dora = {"magnitude", "dora_scale"}
            expected = {"bias": {"bias", "diff_b"}, **dict.fromkeys(dora, dora)}.get(part, {part})
            assert alike(SUFFIXES[to.suffix(module, part)]) in expected


def test_the_table_grows_with_the_block_numbers_of_the_lora_up_to_a_bound():
    assert "blocks.57.ffn.0.weight" in wan_index(["lora_unet_blocks_57_ffn_0"]).specs
    with pytest.raises(LoraError, match="expected block numbers below 1000, found 4000"):
        wan_index(["blocks.4000.ffn.0"])


def test_a_name_that_could_be_two_layers_is_an_error():
    with pytest.raises(LoraError, match=r"lora_unet_a_b_c: expected one layer of that name, found a.b.c and a.b_c"):
        check_unambiguous(["a.b.c.weight", "a.b_c.weight"])


def test_modulation_is_a_parameter_without_a_weight():
    assert is_bare("blocks.3.modulation") and is_bare("head.modulation") and not is_bare("blocks.3.norm3")
