"""One output of a recipe: what is accepted and refused, that the schema says the same, and what it is for one expert."""
import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wan22_master.engine.errors import RecipeError
from wan22_master.engine.precision import Forms
from wan22_master.engine.recipes import embedded, recipe_edit
from wan22_master.engine.recipes import output as output_module
from wan22_master.engine.recipes.output import Output, parse_output
from wan22_master.engine.recipes.recipe import parse
from wan22_master.quant.formats import Options

SCHEMA = json.loads((Path(output_module.__file__).parent / "recipe.schema.json").read_text(encoding="utf-8"))
PAIR = ("high_noise", "low_noise")
Q, K, FFN = "blocks.0.self_attn.q", "blocks.0.cross_attn.k", "blocks.1.ffn.2"
FULL = {
    "format": "nvfp4", "experts": ["low_noise", "high_noise"], "activations": "16-bit", "plan": "balanced",
    "layers": {"low_noise": {Q: "mxfp8"}, "high_noise": {Q: "keep", FFN: "float8_e4m3fn"}},
    "full_precision": {"high_noise": [K], "low_noise": []}, "input_amax": {"low_noise": {K: 3, FFN: 1e-3}},
    "kept_dtype": "bf16", "fp32_names": ["head.modulation", "blocks.0.norm3.weight"], "search": "best", "int8_scaling": "row",
    "rounding": "nearest", "suffix": "b", "gguf_setting": "max", "imatrix": {"low_noise": "weights.gguf"},
}
GGUF = {"format": "Q4_K_M", "layers": {"high_noise": {Q: "Q6_K", FFN: "keep"}}, "gguf_setting": "reference"}
LEAST = {"format": "nvfp4"}


def whole(*outputs, experts=PAIR):
    return {"version": 1, "title": "t", "experts": {role: f"{role}.safetensors" for role in experts}, "outputs": list(outputs)}


def in_schema(*outputs) -> bool:
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(whole(*outputs))


@pytest.mark.parametrize("found", [LEAST, FULL, {"format": "bf16"}, GGUF, {"format": "BF16"}],
                         ids=["least", "full", "plain", "gguf", "plain gguf"])
def test_parser_and_schema_accept_an_output_and_what_it_says_of_itself(found):
    recipe = parse(whole(found))
    assert in_schema(found) and jsonschema.Draft202012Validator(SCHEMA).is_valid(recipe.to_json())
    assert parse(recipe.to_json()) == recipe and parse(json.loads(json.dumps(recipe.to_json()))) == recipe
    [output] = recipe.outputs
    assert output.experts == PAIR                  # named, in order
    assert parse_output(json.loads(json.dumps(dataclasses.asdict(output)))) == output


WRONG = [
    ({"format": "keep"}, "format: expected float8_e4m3fn or"), ({"format": "Q4_K_X"}, "format: "),
    ({"form": "nvfp4"}, "did you mean"),
    ({"layers": {"high": {}}}, r"layers.high: expected one of high_noise"), ({"layers": [Q]}, "layers: expected an object"),
    ({"layers": {"high_noise": [Q]}}, "layers.high_noise: expected an object by layer"),
    ({"layers": {"high_noise": {Q: "bf16"}}}, rf"layers.high_noise.{Q}: expected asym_w4a8_int8 or .* or keep, found 'bf16'"),
    ({"layers": {"high_noise": {Q: None}}}, "layers.high_noise"),
    ({"full_precision": {"high_noise": Q}}, "full_precision.high_noise: expected a list"),
    ({"full_precision": {"high_noise": [""]}}, r"full_precision.high_noise\[0\]: expected a text that is not empty"),
    ({"input_amax": {"high_noise": {Q: 0}}}, "expected a number from 1e-12 to 1e"),
    ({"input_amax": {"high_noise": {Q: -1.0}}}, "expected a number from 1e-12"),
    ({"input_amax": {"high_noise": {Q: 1e13}}}, "to 1e"), ({"input_amax": {"high_noise": {Q: True}}}, "found True"),
    ({"input_amax": {"high_noise": {Q: "3"}}}, "expected a number"),
    ({"kept_dtype": "fp32"}, "kept_dtype: expected source or bf16 or fp16"), ({"fp32_names": "x"}, "fp32_names: expected a list"),
    ({"fp32_names": [" "]}, r"fp32_names\[0\]"), ({"search": "slow"}, "search: expected balanced or fast or best"),
    ({"int8_scaling": "block"}, "int8_scaling: expected convrot or row or tensor"),
    ({"rounding": "stochastic"}, "rounding: expected auto or nearest"), ({"suffix": None}, "suffix: expected a text"),
    ({"gguf_setting": "fast"}, "gguf_setting: expected best or max or reference"), ({"imatrix": {"low": "x"}}, "imatrix.low"),
    ({"plan": 3}, "plan: expected a text"), ({"activations": "16"}, "activations: "), ({"scale": 1}, "scale: expected one of"),
]


@pytest.mark.parametrize(("change", "said"), WRONG)
def test_a_wrong_field_is_named_and_the_schema_refuses_it_too(change, said):
    with pytest.raises(RecipeError, match=said):
        parse(whole(FULL | change))
    # what only Python says: a text of blanks
    assert not in_schema(FULL | change) or change == {"fp32_names": [" "]}


JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.sampled_from(["nvfp4", "keep", Q]),
                    lambda each: st.lists(each, max_size=2) | st.dictionaries(st.sampled_from([*PAIR, Q, "x"]), each, max_size=2),
                    max_leaves=6)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(sorted(FULL)), JSON)
def test_any_value_of_any_field_is_either_taken_by_both_or_refused_with_a_recipe_error(name, value):
    try:
        recipe = parse(whole(FULL | {name: value}))
    except RecipeError:
        return
    assert in_schema(FULL | {name: value}) and parse(recipe.to_json()) == recipe


@pytest.mark.parametrize(("fields", "label"), [
    ({}, "nvfp4"), ({"plan": "balanced"}, "nvfp4_balanced"), ({"suffix": "b"}, "nvfp4_b"),
    ({"plan": "9gb", "suffix": "test"}, "nvfp4_9gb_test"), ({"plan": "nvfp4"}, "nvfp4")])
def test_the_label_is_format_plan_and_suffix(fields, label):
    assert Output("nvfp4", **fields).label == label


def test_two_outputs_of_one_label_are_refused_unless_a_suffix_tells_them_apart():
    for second in ({"search": "fast"}, {"kept_dtype": "bf16"}, {"layers": {"high_noise": {Q: "keep"}}}):
        with pytest.raises(RecipeError, match=r"outputs\[1\]: expected each format once per expert, found 'nvfp4 of high_noise "
                                              "twice', give one of them a suffix"):
            parse(whole(LEAST, LEAST | second))
        assert [each.label for each in parse(whole(LEAST, LEAST | second | {"suffix": "b"})).outputs] == ["nvfp4", "nvfp4_b"]
        assert len(parse(whole(LEAST, LEAST | second | {"plan": "other"})).outputs) == 2
    halves = [LEAST | {"experts": [role]} for role in PAIR]
    assert [each.experts for each in parse(whole(*halves)).outputs] == [PAIR[:1], PAIR[1:]]


def test_what_each_tensor_is_stored_as_differs_by_expert():
    [output] = parse(whole(FULL)).outputs
    names = frozenset({"head.modulation", "blocks.0.norm3.weight"})
    assert output.forms("high_noise") == Forms("nvfp4", {Q: "keep", FFN: "float8_e4m3fn"}, frozenset({K}), "bf16", names,
                                               Options("best", "row", "max"))
    assert output.forms("low_noise") == Forms("nvfp4", {Q: "mxfp8"}, frozenset(), "bf16", names, Options("best", "row", "max"))
    assert Output("nvfp4").forms("model") == Forms("nvfp4") and Output("nvfp4").forms("model").fp32_names is None
    assert Output("nvfp4", fp32_names=()).forms("model").fp32_names == frozenset()   # a map that keeps nothing in F32


def test_one_expert_alone_takes_its_own_layers_with_it():
    [output] = parse(whole(FULL)).outputs
    for role in PAIR:
        alone = output.only(role)
        assert alone.experts == (role,) and alone.forms(role) == output.forms(role) and alone.label == output.label
        assert set(alone.layers) == set(alone.full_precision) == {role} and set(alone.input_amax) <= {role}
    assert output.only("low_noise").input_amax == {"low_noise": {K: 3.0, FFN: 1e-3}} and output.only("high_noise").input_amax == {}


def half(role, **fields):
    return parse({**whole({**LEAST, "plan": "p", **fields}, experts=(role,))})


def test_joined_halves_keep_the_layers_of_each():
    high = half("high_noise", layers={"high_noise": {Q: "mxfp8"}}, full_precision={"high_noise": [K]}, suffix="b")
    low = half("low_noise", layers={"low_noise": {FFN: "keep"}}, input_amax={"low_noise": {Q: 4.0}}, suffix="b")
    [found] = recipe_edit.join(high, low).outputs
    assert found.experts == PAIR and found.layers == {"high_noise": {Q: "mxfp8"}, "low_noise": {FFN: "keep"}}
    assert found.full_precision == {"high_noise": (K,)} and found.input_amax == {"low_noise": {Q: 4.0}}
    for one, role in ((high, "high_noise"), (low, "low_noise")):
        assert found.only(role) == one.outputs[0]


@pytest.mark.parametrize("change", [{"kept_dtype": "bf16"}, {"activations": "16-bit"}, {"search": "fast"}, {"rounding": "nearest"},
                                    {"fp32_names": ["head.modulation"]}])
def test_halves_that_are_made_otherwise_stay_as_they_were(change):
    high, low = half("high_noise"), half("low_noise", **change)
    found = recipe_edit.join(high, low).outputs
    assert [each.experts for each in found] == [PAIR[:1], PAIR[1:]]
    assert [found[0].only("high_noise"), found[1].only("low_noise")] == [high.outputs[0], low.outputs[0]]


def test_an_output_of_one_half_alone_is_not_made_of_the_other():
    [found] = recipe_edit.join(half("high_noise"), parse(whole(experts=PAIR[1:]))).outputs
    assert found.experts == PAIR[:1]


def test_what_is_embedded_of_an_output_makes_it_again():
    recipe = parse(whole(FULL))
    for role in PAIR:
        told = embedded.describe(recipe, role, "base.safetensors", recipe.outputs[0].label, [])
        jsonschema.validate(json.loads(json.dumps(told)), SCHEMA)
        assert parse(json.loads(json.dumps(told))).outputs == (recipe.outputs[0].only(role),)


def test_layers_of_one_kind_of_file_are_refused_in_the_other():
    with pytest.raises(RecipeError, match=rf"layers: {Q}: expected a format of a gguf file, as Q4_K_M is, found nvfp4"):
        parse(whole({"format": "Q4_K_M", "layers": {"high_noise": {Q: "nvfp4"}}}))
    with pytest.raises(RecipeError, match=r"expected a format of a safetensors file, as nvfp4 is, found Q6_K"):
        parse(whole({"format": "nvfp4", "layers": {"high_noise": {Q: "Q6_K"}}}))


def test_the_reference_search_takes_no_imatrix():
    with pytest.raises(RecipeError, match="gguf_setting: expected best or max beside an imatrix, found reference"):
        parse(whole({**GGUF, "imatrix": {"high_noise": "weights.gguf"}}))
