"""Every mix of GGUF in the real ComfyUI-GGUF: no complaint, weights as we decode them, a latent near BF16's, a LoRA on top.

And latents nearer to BF16 than those of llama.cpp's encoder. The files are written in ComfyUI's Python, by the torch encoders
where it has no numba.
"""
import pytest
from comfy_server import find_comfyui
from test_kinds import KINDS as ALL
from test_preview import probe
from wan22_master.engine.gguf_mix import MIXES

FOUND = find_comfyui()
MISSING = FOUND is not None and not (FOUND[0] / "custom_nodes" / "ComfyUI-GGUF").is_dir()
pytestmark = pytest.mark.skipif(MISSING, reason="no ComfyUI-GGUF in custom_nodes")
KINDS = {"t2v": "WAN21_T2V", "i2v": "WAN21_T2V", "i2v 2.1": "WAN21_I2V", "5B": "WAN22_T2V", "vace": "WAN21_Vace"}
BF16_STEP, HALF_STEP = 2 ** -8, 2 ** -11           # largest rounding error, over the number
# Error of the weights as llama.cpp's reference encoder leaves them, normal weights, relative L2 (measured with its library): a
# latent of these models comes out about a third as far.
WEIGHTS = {"Q8_0": .00536, "Q6_K": .01775, "Q5_K": .03613, "Q4_K": .07131, "Q3_K": .15101, "Q2_K": .29661, "Q5_1": .03786,
           "Q5_0": .04275, "Q4_1": .07820, "Q4_0": .08601, "IQ4_NL": .07612, "IQ4_XS": .07672}
PLAIN = {"BF16": BF16_STEP, "F16": HALF_STEP, "F32": 0.0}
# Of 20 block linears 4 are v and 2 ffn.2: city96's rules by hand.
TYPES = {"Q8_0": {"Q8_0": 20}, "Q6_K": {"Q6_K": 20}, "Q5_K_M": {"Q5_K": 14, "Q6_K": 6}, "Q5_K_S": {"Q5_K": 20},
         "Q4_K_M": {"Q4_K": 14, "Q6_K": 6}, "Q4_K_S": {"Q4_K": 14, "Q5_K": 6}, "Q3_K_L": {"Q3_K": 14, "Q5_K": 6},
         "Q3_K_M": {"Q3_K": 14, "Q5_K": 2, "Q4_K": 4}, "Q3_K_S": {"Q3_K": 20}, "Q2_K": {"Q2_K": 16, "Q3_K": 4},
         "Q5_1": {"Q5_1": 20}, "Q5_0": {"Q5_0": 18, "Q5_1": 2}, "Q4_1": {"Q4_1": 20}, "Q4_0": {"Q4_0": 18, "Q4_1": 2},
         "IQ4_NL": {"IQ4_NL": 20}, "IQ4_XS": {"IQ4_XS": 20}, "BF16": {}, "F16": {}, "F32": {}}
# What only the metadata of a safetensors file tells: ComfyUI-GGUF takes none of a GGUF file.
CLASSES = ALL | {"WAN21_CausalAR_T2V": "WAN21_T2V", "WAN_Animate2": "WAN21_I2V", "WAN21_FlowRVS": "WAN21_T2V"}
FEWER_BITS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    (folder / "out").mkdir()
    return probe("gguf_probe", folder)


def test_the_probe_would_hear_a_missing_and_an_unexpected_tensor(probed):
    assert any("missing" in line for line in probed["stray"]["missing"]), probed["stray"]
    assert any("unexpected" in line for line in probed["stray"]["unexpected"]), probed["stray"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mix", MIXES)
def test_a_mix_loads_and_samples_without_a_word(probed, kind, mix):
    found = probed[kind][mix]
    assert found["class"] == KINDS[kind] and found["loading"] == found["lora"] == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mix", MIXES)
def test_a_latent_differs_from_bf16_by_less_than_weights_do(probed, kind, mix):
    default = MIXES[mix].default
    assert probed[kind][mix]["apart"] <= {**WEIGHTS, **PLAIN}[default]


@pytest.mark.parametrize("kind", KINDS)
def test_fewer_bits_are_farther_and_the_plain_files_give_the_latent_of_bf16(probed, kind):
    found = probed[kind]
    distances = [found[mix]["apart"] for mix in FEWER_BITS]
    assert distances == sorted(distances) and distances[0] > 0 and len(set(distances)) == len(distances)
    assert found["BF16"]["apart"] == found["F32"]["apart"] == 0    # the source is BF16, so neither rounds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mix", MIXES)
def test_a_lora_on_top_moves_the_latent_as_it_does_on_bf16(probed, kind, mix):
    """The two shifts differ by a part of the shift: the model between LoRA and latent is another one."""
    assert probed[kind]["moved"] > 5e-3
    assert probed[kind][mix]["move"] < 0.5


@pytest.mark.parametrize("mix", MIXES)
def test_comfyui_holds_every_layer_in_its_type_and_decodes_it_bit_for_bit_as_we_do(probed, mix):
    found = probed["t2v"][mix]
    types = {name: count for name, count in found["types"].items() if name in WEIGHTS}
    assert types == TYPES[mix] and found["unequal"] == []
    # What it does unless told otherwise: scale times code, and code of a scale times scale, in half precision, then a difference of
    # two such products, each up to twice as large as a weight
    assert found["rounded"] <= 4 * HALF_STEP


@pytest.mark.parametrize("mix", MIXES)
def test_latents_are_those_of_the_decoded_weights_with_and_without_a_lora(probed, mix):
    found = probed["t2v"][mix]
    assert found["twin"] <= HALF_STEP and found["twin lora"] <= HALF_STEP    # of weights decoded in half precision


@pytest.mark.slow
def test_every_wan_class_is_itself_as_a_gguf(tmp_path):
    """All of test_kinds.py. BF16 gives the very latent: nothing outside the blocks is taken otherwise than it lies in the file."""
    (tmp_path / "out").mkdir()
    found = probe("gguf_probe_kinds", tmp_path)
    assert set(found) == set(CLASSES)
    for kind, mixes in found.items():
        for told in mixes.values():
            assert (told["class"], told["log"], told["moved"]) == (CLASSES[kind], [], []), kind
        assert mixes["BF16"]["apart"] == 0 < mixes["Q4_K_M"]["apart"] < WEIGHTS["Q4_K"], kind


@pytest.mark.slow
def test_latents_of_our_search_are_nearer_to_bf16_than_those_of_llama_cpps_over_ten_seeds(tmp_path):
    """Mean distance of best over that of reference, measured: Q6_K 0.93, Q5_K_M 0.96, Q4_K_M 0.98, Q3_K_M 0.94, Q2_K 0.90."""
    (tmp_path / "out").mkdir()
    found = probe("gguf_probe_seeds", tmp_path)
    assert found.pop("log") == [] and set(found) == {"Q5_K_M", "Q4_K_M", "Q2_K"}
    for mix, distances in found.items():
        best, reference = distances["best"], distances["reference"]
        assert len(best) == len(reference) == 10 and sum(best) < sum(reference), mix
        assert sum(ours < theirs for ours, theirs in zip(best, reference, strict=True)) >= 8, mix
