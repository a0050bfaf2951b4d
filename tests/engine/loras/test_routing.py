"""Which expert a LoRA goes on: evidence in its order, the user's word, and strengths as `high;low`."""
import os

import pytest
from wan22_master.engine.errors import RecipeError
from wan22_master.engine.loras.lora import open_lora
from wan22_master.engine.loras.routing import Routing, route, strengths
from wan22_master.tests.engine import tiny, trainers

LAYERS = ["blocks.0.self_attn.q"]
PAIR = tiny.PAIR
HIGH, LOW = PAIR


def routed(path, choice="auto", exists=os.path.exists):
    with open_lora(path) as lora:
        return route(str(path), lora, choice, exists)


def saved(path, metadata=None, prefix="diffusion_model."):
    tensors = {key.replace("diffusion_model.", prefix): tensor for key, tensor in tiny.lora(layers=LAYERS).items()}
    return tiny.save(path, tensors, metadata)


@pytest.mark.parametrize(("write", "options", "experts", "evidence"), [
    (trainers.write_ai_toolkit, {}, ["high", "low"], "file name"), (trainers.write_ai_toolkit, {"split": False}, ["split"], "keys"),
    (trainers.write_onetrainer, {}, ["split"], "keys"), (trainers.write_onetrainer, {"omi": False}, ["split"], "keys"),
    (trainers.write_onetrainer, {"roles": (LOW,)}, ["low"], "prefix of the keys"),
    (trainers.write_onetrainer, {"roles": (HIGH,)}, ["both"], "no word"),
    (trainers.write_musubi, {}, ["high", "low"], "timestep_range"),
    (trainers.write_musubi, {"ranges": (None,)}, ["both"], "no word"),
    (trainers.write_musubi, {"ranges": ("875,1000", "0,875")}, ["high", "low"], "timestep_range"),
    (trainers.write_seko, {}, ["high", "low"], "file name"), (trainers.write_lightx2v, {}, ["high", "low"], "file name"),
    (trainers.write_diffusion_pipe, {}, ["high", "low"], "folder"), (trainers.write_diffusers, {}, ["both"], "no word"),
    (trainers.write_diffusers, {"both": True}, ["split"], "keys"), (trainers.write_fun, {}, ["both"], "no word"),
])
def test_every_trainers_files_go_where_they_were_trained(tmp_path, write, options, experts, evidence):
    found = [routed(path) for path in write(tmp_path, LAYERS, **options)]
    assert [each.expert for each in found] == experts
    assert all(evidence in each.evidence for each in found)


def test_the_evidence_is_asked_in_its_order_and_what_it_overrules_is_told(tmp_path):
    """Each stronger kind of evidence says the opposite of the next one."""
    titles = {"ss_output_name": "style_high_noise"}
    path = saved(tmp_path / "a_H.safetensors", titles)
    saved(tmp_path / "a_L.safetensors")
    assert routed(path) == Routing("high", "metadata ss_output_name 'style_high_noise'", ())
    low = saved(tmp_path / "low_noise" / "a.safetensors", titles)
    assert (routed(low).expert, routed(low).against) == ("low", ("metadata ss_output_name 'style_high_noise'",))
    high = saved(tmp_path / "low_noise" / "a_HIGH.safetensors", titles)
    assert "file name" in routed(high).evidence and routed(high).expert == "high"
    ranged = saved(tmp_path / "low_noise" / "b_HIGH.safetensors", titles | {"modelspec.timestep_range": "0,900"})
    assert routed(ranged).expert == "low" and "timestep_range" in routed(ranged).evidence and len(routed(ranged).against) == 2
    keyed = saved(tmp_path / "low" / "c_LOW.safetensors", {"modelspec.timestep_range": "0,900"}, "diffusion_model.transformer_1.")
    assert routed(keyed).expert == "high" and routed(keyed).evidence == "prefix of the keys" and len(routed(keyed).against) == 3
    sibling = saved(tmp_path / "d_H.safetensors")
    assert routed(sibling).expert == "both"
    saved(tmp_path / "d_L.safetensors")
    assert routed(sibling).expert == "high" and "beside" in routed(sibling).evidence


@pytest.mark.parametrize("title", ["ss_output_name", "ss_sd_model_name", "modelspec.title"])
def test_titles_count_where_the_names_are_silent(tmp_path, title):
    assert routed(saved(tmp_path / "x.safetensors", {title: "wan2.2_t2v_low_noise_14B_fp16.safetensors"})).expert == "low"


def test_both_words_are_asked_about_unless_one_is_chosen(tmp_path):
    path = saved(tmp_path / "style_high_low_pair.safetensors")
    found = routed(path)
    assert found.expert == "ask" and "says both high and low" in found.evidence
    assert routed(path, "both") == Routing("both", "chosen by hand", (found.evidence,), is_chosen=True)


def test_a_file_of_both_experts_stays_split_unless_one_expert_is_chosen(tmp_path):
    [path] = trainers.write_onetrainer(tmp_path, LAYERS)
    for choice in ("auto", "both"):
        assert routed(path, choice).expert == "split"
    assert routed(path, "low") == Routing("low", "chosen by hand", (), is_chosen=True)


def test_the_users_word_goes_first_and_what_it_overrules_is_told(tmp_path):
    for path, mine, other in zip(trainers.write_musubi(tmp_path, LAYERS), ("high", "low"), ("low", "high"), strict=True):
        assert routed(path, mine).against == ()
        chosen = routed(path, other)
        assert chosen.expert == other and chosen.is_chosen
        assert len(chosen.against) == 1 and "timestep_range" in chosen.against[0]


def test_a_choice_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="expected auto, high, low, both, found 'middle'"):
        routed(saved(tmp_path / "a.safetensors"), "middle")


@pytest.mark.parametrize(("text", "expected"), [
    ("1", (1, 1)), ("3.0;1.5", (3, 1.5)), (" -0.5 ; 2 ", (-0.5, 2)), ("0;1", (0, 1)), (".5;1e-1", (0.5, 0.1)),
    ("+1;-.25", (1, -0.25)), (2, (2, 2)),
])
def test_strengths_are_one_number_or_two(text, expected):
    assert strengths(text) == expected


@pytest.mark.parametrize("text", ["", ";", "1;", ";1", "1;2;3", "1;0 0;1", "1,0;2", "nan", "inf;1", "1e999", "high", "1;x"])
def test_other_strengths_are_refused(text):
    with pytest.raises(RecipeError, match=r"expected a number, or two as high;low, found"):
        strengths(text)
