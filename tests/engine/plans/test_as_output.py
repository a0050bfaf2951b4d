"""A plan as an output of a recipe: every layer has there what the plan gave it."""
import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wan22_master.engine.errors import RecipeError
from wan22_master.engine.plans.as_output import as_output
from wan22_master.engine.plans.plan import KEEP, Choice, PrecisionPlan
from wan22_master.engine.recipes.output import Output, parse_output
from wan22_master.quant.formats import QUANTIZED
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


def test_kept_layers_are_never_the_format_however_many_they_are():
    choices = dict.fromkeys(LAYERS, Choice(KEEP)) | {LAYERS[0]: Choice("mxfp8")}
    assert as_output(PrecisionPlan("p", {"model": choices})).format == "mxfp8"


def test_what_a_person_chose_beside_the_plan_stays():
    asked = Output("bf16", experts=("high_noise",), activations="16-bit", search="best", int8_scaling="row", rounding="nearest",
                   suffix="b", input_amax={"high_noise": {LAYERS[0]: 2.0}}, kept_dtype="fp16", layers={"low_noise": {"x": "mxfp8"}},
                   fp32_names=("a",))
    plan = PrecisionPlan("p", {"high_noise": {LAYERS[0]: Choice("nvfp4", full_precision=True)}}, "bf16", ("head.modulation",))
    found = as_output(plan, asked)
    kept = ("experts", "activations", "search", "int8_scaling", "rounding", "suffix", "input_amax")
    assert [getattr(found, name) for name in kept] == [getattr(asked, name) for name in kept]
    assert (found.kept_dtype, found.fp32_names, found.layers) == ("bf16", ("head.modulation",), {"high_noise": {}})
    assert found.full_precision == {"high_noise": (LAYERS[0],)}
