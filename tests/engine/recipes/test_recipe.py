"""The recipe: what is accepted, what is refused and how that is said, and that the schema says the same."""
import copy
import dataclasses
import json
import os
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wan22_master.engine.errors import RecipeError
from wan22_master.engine.merging.adaptive.constants import AdaptiveConstants
from wan22_master.engine.merging.gate import ClassicConstants
from wan22_master.engine.recipes import recipe as recipe_module
from wan22_master.engine.recipes.recipe import LoraEntry, Mix, Output, Pass, Recipe, Save, load, parse

SCHEMA = json.loads((Path(recipe_module.__file__).parent / "recipe.schema.json").read_text(encoding="utf-8"))
LEAST = {"version": 1, "title": "mix", "experts": {"model": "m.safetensors"}}
FULL = {
    "version": 1, "title": "my mix", "title_version": "1.0", "date": "2026-11-21",
    "experts": {"high_noise": "h.safetensors", "low_noise": "/abs/l.safetensors"},
    "allow_quantized_source": False,
    "passes": [
        {"name": "Pass 1", "method": "auto", "global_factor": 1, "gate_distillation": False,
         "classic": {"novelty": 1.5, "sensitivity_new": 0.4, "sensitivity_refine": 1.8, "limit_new": 0.08, "limit_refine": 0.05},
         "loras": [{"files": {"low_noise": "l.safetensors", "high_noise": "h.safetensors"},
                    "strength": {"high_noise": 1.0, "low_noise": -0.8}, "method": None}]},
        {"method": "classic", "classic": {"novelty": 2},
            "loras": [{"files": {"low_noise": "x"}, "method": "addition", "resolved": "addition"}]},
    ],
    "outputs": [{"format": "float8_e4m3fn", "experts": ["low_noise", "high_noise"], "activations": "16-bit"},
                {"format": "bf16", "experts": ["low_noise"]}, {"format": "fp16"}],
    "save": {"folder": "out", "name": "%title%_%expert%", "metadata": "none", "lora_names": False, "on_exists": "error"},
    "device": "cpu",
}
# JSON path of the change, the value put there (DROP: taken away), and what the error must say.
DROP = object()
WRONG = [
    (["version"], 2, "version: expected 1, found 2, update the pack"), (["version"], True, "version: expected 1"),
    (["version"], "1", "version: expected 1"), (["version"], DROP, "version: expected a value"),
    (["title"], "", "title: expected a text that is not empty"), (["title"], 3, "title: "), (["title"], DROP, "title: "),
    (["titel"], "x", "titel: expected one of .*did you mean title"), (["extra_thing"], 1, "extra_thing: .*remove it, or update"),
    (["date"], "2026-13-01", "date: expected a date"), (["date"], "20261121", "date: "), (["date"], 5, "date: "),
    (["experts"], {}, "experts: expected high_noise and low_noise, one of them, or model"),
    (["experts"], {"model": "x", "low_noise": "y"}, "experts: "),
    (["experts"], {"high_noise": "x", "low_noise": "y", "model": "z"}, "experts: "),
    (["experts"], ["x"], "experts: expected an object"),
    (["experts", "high_noise"], None, "experts.high_noise: "),
    (["experts", "high"], "x", "experts.high: expected one of high_noise"),
    (["allow_quantized_source"], 1, "allow_quantized_source: expected true or false, found 1"),
    (["passes"], {}, "passes: expected a list"), (["passes", 0], 3, r"passes\[0\]: expected an object with loras, name"),
    (["passes", 0, "loras"], DROP, r"passes\[0\].loras: "),
    (["passes", 0, "method"], "ties", "expected auto or addition or classic or adaptive"),
    (["passes", 0, "combine"], "dare", "combine: expected sum or ties"),
    (["passes", 0, "density"], 1.5, "density: expected a number from 0 to 1"),
    (["passes", 0, "seed"], 1.5, "seed: expected a whole number"), (["passes", 0, "seed"], True, "seed: expected a whole number"),
    (["passes", 0, "scope"], {"head": 1}, r"scope.head: expected a range of blocks or a kind"),
    (["passes", 0, "scope"], {"ffn": "x"}, r"scope.ffn: expected a number"),
    (["passes", 0, "adaptive"], {"limit": 1}, "adaptive.limit: expected one of known_over_chance"),
    (["passes", 0, "loras", 0, "strength"], "1;2;3", "strength: expected an object by expert, or a text"),
    (["passes", 0, "loras", 0, "strength"], "a;1", "strength: expected an object by expert, or a text"),
    (["passes", 0, "loras", 0, "rs_lora"], "yes", "rs_lora: expected true or false"),
    (["compat"], "kohya", "compat: expected correct or comfyui"),
    (["strict_share"], 2, "strict_share: expected a number from 0 to 1"),
    (["mix"], {"method": "ties"}, "mix.files: expected a value"),
    (["mix"], {"files": {}, "method": "sum"}, "mix.method: expected weighted_sum"),
    (["passes", 0, "global_factor"], 4.5, r"passes\[0\].global_factor: expected a number from 0 to 4, found 4.5"),
    (["passes", 0, "global_factor"], True, "found True"), (["passes", 0, "global_factor"], "1", "found '1'"),
    (["passes", 0, "gate_distillation"], "no", "expected true or false"),
    (["passes", 0, "classic", "novelty"], -1, r"passes\[0\].classic.novelty: expected a number from 0 to 100, found -1"),
    (["passes", 0, "classic", "new"], 1, r"classic.new: expected one of novelty"),
    (["passes", 0, "loras", 0, "files"], {}, r"passes\[0\].loras\[0\].files: expected a file for high_noise or low_noise"),
    (["passes", 0, "loras", 0, "files", "high_noise"], " ", r"loras\[0\].files.high_noise: expected a text that is not empty"),
    (["passes", 0, "loras", 0, "strength", "high_noise"], 101, r"strength.high_noise: expected a number from -100 to 100"),
    (["passes", 0, "loras", 0, "method"], "gated", r"loras\[0\].method: "),
    (["passes", 1, "loras", 0, "resolved"], "auto", "resolved: "),
    (["outputs", 0, "format"], "fp8", "expected float8_e4m3fn or .* or Q3_K, found 'fp8'"),
    (["outputs", 0, "format"], DROP, r"outputs\[0\].format: "),
    (["outputs", 0, "experts"], ["high"], r"outputs\[0\].experts\[0\]: "),
    (["outputs", 0, "activations"], "fp8", "expected fast_uncalibrated or 16-bit"),
    (["outputs", 0, "experts"], None, "expected a list"),
    (["save"], [], "save: expected an object"), (["save", "folder"], "", "save.folder: "), (["save", "name"], 1, "save.name: "),
    (["save", "metadata"], "all", "publish or private or none"), (["save", "lora_names"], None, "save.lora_names: "),
    (["save", "on_exists"], "ask", "number or overwrite or error"), (["save", "foldr"], "x", "did you mean folder"),
    (["device"], None, "device: "),
]
# What a schema cannot say: how the parts of a recipe fit together, NUL in a path, real calendar days.
WRONG_TOGETHER = [
    (["passes", 0, "scope"], {"8-0": 1}, r"scope.8-0: expected a range of blocks or a kind"),
    (["passes", 0, "loras", 0, "files"], {"model": "x"}, "expected a file for high_noise or low_noise, found .'model'"),
    (["passes", 1, "loras", 0, "strength"], {"high_noise": 1}, "strength: expected only low_noise, which have a file"),
    (["outputs", 0, "experts"], ["model"], r"outputs\[0\].experts: expected high_noise or low_noise"),
    (["outputs", 2, "format"], "bf16", r"outputs\[2\]: expected each format once per expert, found 'bf16 of low_noise twice'"),
    (["experts", "high_noise"], "a\0b", "experts.high_noise: "), (["date"], "2026-02-30", "date: expected a date"),
]


def changed(where, value):
    found = copy.deepcopy(FULL)
    place = found
    for name in where[:-1]:
        place = place[name]
    if value is DROP:
        del place[where[-1]]
    else:
        place[where[-1]] = value
    return found


def in_schema(found) -> bool:
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(found)


@pytest.mark.parametrize("found", [LEAST, FULL, {**LEAST, "experts": {"low_noise": "l"}}], ids=["least", "full", "half"])
def test_parser_and_schema_accept_the_examples_and_what_the_recipe_says_of_itself(found):
    recipe = parse(found)
    assert in_schema(found) and in_schema(recipe.to_json())
    assert parse(recipe.to_json()) == recipe and parse(json.loads(json.dumps(recipe.to_json()))) == recipe


@pytest.mark.parametrize(("where", "value", "said"), WRONG)
def test_a_wrong_value_is_named_and_the_schema_refuses_it_too(where, value, said):
    found = changed(where, value)
    with pytest.raises(RecipeError, match=said):
        parse(found)
    assert not in_schema(found) or said.startswith("date: expected a date")


@pytest.mark.parametrize(("where", "value", "said"), WRONG_TOGETHER)
def test_parts_that_do_not_fit_together_are_named(where, value, said):
    with pytest.raises(RecipeError, match=said):
        parse(changed(where, value))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf"), 10**400], ids=["nan", "inf", "-inf", "huge"])
def test_a_strength_that_is_no_finite_number_is_refused(number):
    with pytest.raises(RecipeError, match="high_noise: expected a number from"):
        parse(changed(["passes", 0, "loras", 0, "strength", "high_noise"], number))


PARTS = (Pass, LoraEntry, Mix, Output, Save, ClassicConstants, AdaptiveConstants)


@pytest.mark.parametrize(("kind", "place"), [(Recipe, SCHEMA), *((kind, SCHEMA["$defs"][kind.__name__]) for kind in PARTS)])
def test_schema_and_dataclass_have_the_same_fields_defaults_and_required_ones(kind, place):
    fields = dataclasses.fields(kind)
    assert {field.name for field in fields} == set(place["properties"]) and place["additionalProperties"] is False
    is_required = {field.name for field in fields
                   if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING}
    assert is_required == set(place.get("required", []))
    for field in fields:
        said = place["properties"][field.name]
        if field.name not in is_required and not isinstance(said["default"], dict | list):
            assert said["default"] == field.default and type(said["default"]) is type(field.default), field.name


def test_the_defaults_are_those_of_the_contract():
    assert parse(LEAST).to_json() == {
        "version": 1, "title": "mix", "title_version": "", "experts": {"model": "m.safetensors"}, "allow_quantized_source": False,
        "passes": [], "outputs": [], "device": "auto", "compat": "correct", "normalize": False, "strict": False,
        "strict_share": 0.01, "allow_twice": False,
        "save": {"folder": ".", "name": "%title%_%task%_%expert%_%format%", "metadata": "publish", "lora_names": True,
            "on_exists": "number", "order": "auto"},
    }


def test_strengths_may_be_written_as_high_and_low_in_one_text():
    def strength(text, files):
        found = changed(["passes", 0, "loras", 0], {"files": files, "strength": text})
        return parse(found).passes[0].loras[0].strength

    assert strength("3.0;1.5", {"high_noise": "a", "low_noise": "b"}) == {"high_noise": 3.0, "low_noise": 1.5}
    assert strength("2", {"high_noise": "a", "low_noise": "b"}) == {"high_noise": 2.0, "low_noise": 2.0}
    assert strength("3;1.5", {"low_noise": "b"}) == {"low_noise": 1.5}


@pytest.mark.parametrize(("mix", "said"), [
    ({"method": "ties", "files": {"high_noise": ["b"]}}, "mix.files.high_noise: expected 2 files for ties"),
    ({"method": "slerp", "files": {"high_noise": ["b", "c"]}}, "mix.files.high_noise: expected 1 files for slerp"),
    ({"method": "slerp", "files": {"model": ["b"]}}, "mix.files: expected checkpoints for high_noise"),
    ({"method": "slerp", "files": {"high_noise": ["b"]}, "strength": {"low_noise": 1}}, "mix.strength: expected only high_noise")])
def test_a_mix_takes_as_many_checkpoints_as_its_method(mix, said):
    with pytest.raises(RecipeError, match=said):
        parse(FULL | {"mix": mix})
    assert parse(FULL | {"mix": {"method": "ties", "files": {"high_noise": ["b", "c"]}}}).mix.files == {"high_noise": ("b", "c")}


def test_missing_constants_of_the_classic_gate_keep_their_values():
    assert parse(FULL).passes[1].classic == ClassicConstants(novelty=2.0)


def test_outputs_name_their_experts_in_order():
    assert [output.experts for output in parse(FULL).outputs] == [("high_noise", "low_noise"), ("low_noise",),
        ("high_noise", "low_noise")]


def test_the_same_wish_gives_the_same_text_however_it_was_written():
    turned = json.loads(json.dumps(FULL), object_pairs_hook=lambda pairs: dict(reversed(pairs)))
    turned["outputs"][0]["experts"].reverse()
    assert json.dumps(parse(turned).to_json()) == json.dumps(parse(FULL).to_json())


def test_relative_paths_count_from_the_recipe_and_absolute_ones_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    (tmp_path / "r.json").write_text(json.dumps(changed(["passes", 1, "loras", 0, "files", "low_noise"], "~/l")),
        encoding="utf-8-sig")
    recipe = load(tmp_path / "r.json")
    assert recipe.experts == {"high_noise": str(tmp_path / "h.safetensors"), "low_noise": os.path.normpath("/abs/l.safetensors")}
    assert recipe.passes[0].loras[0].files["low_noise"] == str(tmp_path / "l.safetensors")
    assert recipe.passes[1].loras[0].files["low_noise"] == str(tmp_path / "home" / "l")
    assert recipe.save.folder == str(tmp_path / "out")


@pytest.mark.parametrize(("body", "said"), [
    (b"{", "expected a recipe in JSON"), (b"[]", "not an object"), (b"\xff\xfe", "recipe in JSON"),
    (b'{"version": 1, "version": 1}', "occurs twice"),
    (b'{"version": 1, "experts": {"model": "x"}, "title": NaN}', "title: expected a text"), (b"[" * 100000, "recipe in JSON"),
    (b" " * (9 << 20), "at most 8388608 bytes"),
    (b'{"version": 1, "title": "x", "experts": {"model": 1}}', "r.json: experts.model: "),
], ids=["cut", "list", "utf16", "twice", "nan", "deep", "large", "wrong"])
def test_a_file_that_is_no_recipe_is_named(tmp_path, body, said):
    (tmp_path / "r.json").write_bytes(body)
    with pytest.raises(RecipeError, match=said):
        load(tmp_path / "r.json")


def test_a_missing_recipe_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"gone\.json: cannot be opened"):
        load(tmp_path / "gone.json")


JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
                    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=5), each, max_size=3), max_leaves=8)
PLACES = [where for where, _, _ in WRONG]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PLACES), JSON)
def test_any_value_anywhere_is_either_taken_by_both_or_refused_with_a_recipe_error(where, value):
    found = changed(where, value)
    try:
        recipe = parse(found)
    except RecipeError:
        return
    assert in_schema(found) and parse(recipe.to_json()) == recipe
