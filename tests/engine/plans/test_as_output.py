"""A plan as an output of a recipe: every layer has there what the plan gave it."""
import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wan22_master.engine.errors import RecipeError
from wan22_master.engine.gguf_mix import MIXES, mix_types
from wan22_master.engine.plans.as_output import as_output, base_of
from wan22_master.engine.plans.plan import KEEP, Choice, PrecisionPlan
from wan22_master.engine.precision import is_block_linear
from wan22_master.engine.recipes.output import Output, parse_output
from wan22_master.quant.formats import BLOCK_TYPES, QUANTIZED
from wan22_master.tests.engine.plans import models

MODEL = models.small(2)
LAYERS = [key.removesuffix(".weight") for key in MODEL if key.endswith((".q.weight", ".k.weight", ".ffn.0.weight"))]
CHOICES = st.builds(Choice, st.sampled_from([*sorted(QUANTIZED), KEEP]), st.booleans())
PLANS = st.lists(CHOICES, min_size=len(LAYERS), max_size=len(LAYERS)).map(lambda found: dict(zip(LAYERS, found, strict=True)))


@given(st.dictionaries(st.sampled_from(["high_noise", "low_noise"]), PLANS, min_size=1))
def test_every_layer_gets_what_the_plan_gave_it_through_json_and_back(experts):
    plan = PrecisionPlan("p", experts)
    if all(choice.format == KEEP for choices in experts.values() for choice in choices.values()):
        with pytest.raises(RecipeError, match="plan p: expected a layer that is quantized, found none; choose bf16 or fp16"):
            as_output(plan)
        return
    output = as_output(PrecisionPlan.from_json(json.loads(json.dumps(plan.to_json()))))
    output = parse_output(json.loads(json.dumps(dataclasses.asdict(output))))
    for role, choices in experts.items():
        forms = output.forms(role)
        for layer, choice in choices.items():
            key = f"{layer}.weight"
            assert forms.name(key, MODEL[key]) == (None if choice.format == KEEP else choice.format)
            assert forms.is_full_precision(key) == (choice.full_precision and choice.format != KEEP)


def test_the_format_that_most_layers_of_all_experts_get_is_the_outputs_own_and_the_others_are_named():
    high = {LAYERS[0]: Choice("mxfp8"), LAYERS[1]: Choice("mxfp8"), LAYERS[2]: Choice(KEEP), LAYERS[3]: Choice("nvfp4")}
    low = dict.fromkeys(LAYERS[:4], Choice("nvfp4"))
    output = as_output(PrecisionPlan("9gb", {"high_noise": high, "low_noise": low}))
    assert output.format == "nvfp4" and output.plan == "9gb" and output.label == "nvfp4_9gb"
    assert output.layers == {"high_noise": {LAYERS[0]: "mxfp8", LAYERS[1]: "mxfp8", LAYERS[2]: KEEP}, "low_noise": {}}


GGUF_CHOICES = st.builds(Choice, st.sampled_from([*BLOCK_TYPES, KEEP]), st.booleans())


@given(st.lists(GGUF_CHOICES, min_size=len(LAYERS), max_size=len(LAYERS)))
def test_every_layer_of_a_gguf_gets_what_the_plan_gave_it(found):
    choices = dict(zip(LAYERS, found, strict=True))
    if all(choice.format == KEEP for choice in found):
        return
    output = as_output(PrecisionPlan("p", {"model": choices}))
    output = parse_output(json.loads(json.dumps(dataclasses.asdict(output))))
    forms = output.forms("model")
    assert output.container == "gguf" and output.full_precision == {"model": ()}
    for layer, choice in choices.items():
        key = f"{layer}.weight"                    # 256 and 512 columns hold every type
        assert forms.name(key, MODEL[key]) == (None if choice.format == KEEP else choice.format)


@pytest.mark.parametrize("name", [*(name for name, mix in MIXES.items() if not mix.is_plain), "Q3_K", "Q4_K", "Q5_K"])
def test_a_mix_is_called_by_its_own_name_and_changed_layers_do_not_rename_it(name):
    keys = [key for key in models.small() if is_block_linear(key, models.small()[key])]
    rules = mix_types(name, keys) if name in MIXES else dict.fromkeys(keys, name)
    choices = {key.removesuffix(".weight"): Choice(each) for key, each in rules.items()}
    plan = PrecisionPlan(name, {"high_noise": choices, "low_noise": choices})
    assert base_of(plan) == (name, 0) and as_output(plan).format == as_output(plan).label == name
    changed = choices | {"blocks.0.self_attn.q": Choice(KEEP), "blocks.7.ffn.0": Choice("Q8_0" if name != "Q8_0" else "Q6_K")}
    assert base_of(PrecisionPlan(name, {"high_noise": changed, "low_noise": choices})) == (name, 2)


def test_kept_layers_are_never_the_format_however_many_they_are():
    choices = dict.fromkeys(LAYERS, Choice(KEEP)) | {LAYERS[0]: Choice("mxfp8")}
    assert as_output(PrecisionPlan("p", {"model": choices})).format == "mxfp8"


def test_what_a_person_chose_beside_the_plan_stays():
    asked = Output("mxfp8", experts=("high_noise",), activations="16-bit", search="best", int8_scaling="row", rounding="nearest",
                   suffix="b", input_amax={"high_noise": {LAYERS[0]: 2.0}}, kept_dtype="fp16", layers={"low_noise": {"x": "mxfp8"}},
                   fp32_names=("a",))
    plan = PrecisionPlan("p", {"high_noise": {LAYERS[0]: Choice("nvfp4", full_precision=True)}}, "bf16", ("head.modulation",))
    found = as_output(plan, asked)
    kept = ("experts", "activations", "search", "int8_scaling", "rounding", "suffix", "input_amax")
    assert [getattr(found, name) for name in kept] == [getattr(asked, name) for name in kept]
    assert (found.kept_dtype, found.fp32_names, found.layers) == ("bf16", ("head.modulation",), {"high_noise": {}})
    assert found.full_precision == {"high_noise": (LAYERS[0],)}
