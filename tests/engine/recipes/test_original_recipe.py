"""Recipes of the original Action-Master, read unchanged. What each must become was worked out by hand from the original's code."""

import json
import os

import pytest
from wan22_master.engine.errors import RecipeError
from wan22_master.engine.recipes import original_recipe
from wan22_master.engine.recipes.scope import factor

# The example that the original shipped (recipes/example.json), with the keys of its last version and a remark.
SHIPPED = """{
  "paths": {
    "base_model": "Wan2.2_14B_Base.safetensors",  // the GUI overwrites it
    "lora_dir":   "loras/wan22",
    "output_prefix": "Wan22_Master_V1",
    "title": "Awesome Checkpoint Title",
    "resolution": "960x960",
    "type": "Wan 2.2 I2V 14B",
    "global_weight_factor": 1.0,
    "save_interval": 0
  },
  "pipeline": [
    { "pass_name": "Engine_Core", "method": "addition", "description": "free text", "density": 1.0, "normalize": true,
      "features": [ { "file": "wan2.2_distilled_engine.safetensors", "weight": 1.2 } ] },
    { "pass_name": "Anatomy_Injection", "method": "injection", "density": 0.90,
      "features": [ { "file": "x.safetensors", "weight": 0.45 }, { "file": "y.safetensors", "weight": 0.3 } ] },
    { "pass_name": "Motion_Physics", "method": "injection", "density": 0.85,
      "features": [ { "file": "m.safetensors", "weight": 0.5 } ] },
    { "pass_name": "Aesthetic_Refine", "method": "injection", "density": 0.95, "features": [] }
  ]
}"""
PAIR = {"high_noise": "/m/wan_high.safetensors", "low_noise": "/m/wan_low.safetensors"}


def read(found, where="mix.json", **more):
    return original_recipe.read(found if isinstance(found, str) else json.dumps(found), where, **more)


def one(feature, **step):
    return {"paths": {}, "pipeline": [{"features": [feature], **step}]}


def entries(original):
    return [lora for each in original.recipe.passes for lora in each.loras]


def test_the_shipped_example_is_read_as_written_by_hand():
    original = read(SHIPPED, experts=PAIR)
    recipe = original.recipe
    assert recipe.title == "Awesome Checkpoint Title" and recipe.experts == PAIR and recipe.normalize is False
    told = [(each.name, each.method, each.global_factor, each.dense_density, each.combine) for each in recipe.passes]
    assert told == [
        ("Engine_Core", "addition", 1.0, 1.0, "sum"),
        ("Anatomy_Injection", "classic", 1.0, 0.9, "sum"),
        ("Motion_Physics", "classic", 1.0, 0.85, "sum"),
        ("Aesthetic_Refine", "classic", 1.0, 0.95, "sum"),
    ]
    both = [("wan2.2_distilled_engine", 1.2), ("x", 0.45), ("y", 0.3), ("m", 0.5)]
    assert [(lora.files, lora.strength) for lora in entries(original)] == [
        (dict.fromkeys(PAIR, f"loras/wan22/{name}.safetensors"), dict.fromkeys(PAIR, weight)) for name, weight in both
    ]
    constants = recipe.passes[1].classic
    assert (constants.novelty, constants.sensitivity_new, constants.sensitivity_refine) == (1.5, 0.4, 1.8)
    assert (constants.limit_new, constants.limit_refine) == (0.08, 0.05)
    said = "\n".join(original.notices)
    for word in (
        "4 passes, 4 LoRAs",
        "normalize True",
        "output_prefix",
        "resolution",
        "paths.type",
        "save_interval",
        "descriptions",
        "density 0.9",
        "density 0.85",
        "Wan2.2_14B_Base.safetensors",
        "names no expert",
    ):
        assert word in said, word
    assert "density 1" not in said


def test_an_address_in_a_string_survives_and_a_remark_outside_does_not():
    text = """{ // "pipeline": 1
      "paths": {"title": "see https://civitai.com/models/1 // not a remark", "base_model": "a\\\\" }, // http://x
      "pipeline": [{"description": "http://y \\" // z", "features": [ {"file": "x.safetensors", "weight": 1} // last
      ]}] // end
    }"""
    original = read(text)
    assert original.recipe.title == "see https://civitai.com/models/1 // not a remark" and original.base == "a\\"
    assert entries(original)[0].files["high_noise"] == "loras/x.safetensors"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('{\n  "paths": {},\n  "pipeline": [,]\n}', "line 3 column 16"),
        ('{"paths": {} // x\n "pipeline": []}', "line 2 column 2"),
        ('{"paths": "http://a\n"}', "line 1 column 20"),
        ("", "line 1 column 1"),
        ('{"pipeline": [],}', "line 1 column 17"),
        ('\ufeff{"pipeline": [}', "line 1 column 15"),
    ],
)
def test_text_that_is_no_json_is_told_with_line_and_column(text, place):
    with pytest.raises(RecipeError, match=place) as told:
        read(text)
    assert str(told.value).startswith("mix.json: ")


@pytest.mark.parametrize(
    "text",
    [
        '{"pipeline": [], "pipeline": []}',
        "[" * 900_000,
        '{"a":' * 5000 + "1" + "}" * 5000,
        "[]",
        "1",
        '{"pipeline": [], "paths": []}',
        '{"paths": {}}',
        '{"pipeline": {"a": 1}}',
        '{"pipeline": [1]}',
        '{"pipeline": [{"features": [1]}]}',
        '{"pipeline": [{"features": {}}]}',
        '{"pipeline": [{}]}',
        '{"pipeline": [{"features": [], "styles": []}]}',
        '{"pipeline": [{"features": [{"file": " "}]}]}',
        '{"pipeline": [{"features": [{"file": 3}]}]}',
        "\x00",
        chr(0xD800),
        '{"pipeline": []}\ud800',
    ],
    ids=range(18),
)
def test_hostile_or_broken_text_is_a_recipe_error_that_names_the_recipe(text):
    with pytest.raises(RecipeError, match=r"^mix\.json"):
        read(text)


@pytest.mark.parametrize(
    ("found", "near"),
    [
        ({"paths": {}, "pipelines": []}, "did you mean pipeline"),
        ({"paths": {"lora_dirs": "x"}, "pipeline": []}, "did you mean lora_dir"),
        (one({"file": "x", "wieght": 1}), "did you mean weight"),
        (one({"file": "x", "weight": 1}, densty=1), "did you mean density"),
        (one({"file": "x", "zzz": 1}), "begin its name with _"),
    ],
)
def test_a_key_that_no_version_had_is_an_error_with_its_line_and_a_near_match(found, near):
    with pytest.raises(RecipeError, match=near) as told:
        read(json.dumps(found, indent=1))
    assert "(line " in str(told.value)


@pytest.mark.parametrize(
    ("weight", "high", "low"), [(0.5, 0.5, 0.5), ("0.5", 0.5, 0.5), ("1.5;0.25", 1.5, 0.25), (" 1 ; -1 ", 1, -1), (0, 0, 0)]
)
def test_a_weight_is_a_number_or_a_text_for_high_and_low(weight, high, low):
    [entry] = entries(read(one({"file": "x.safetensors", "weight": weight})))
    assert entry.strength == {"high_noise": high, "low_noise": low}


@pytest.mark.parametrize("weight", [True, None, "a", "1;2;3", "nan", float("nan"), 101, [1], "", "1;"])
def test_a_weight_that_is_none_is_an_error(weight):
    with pytest.raises(RecipeError, match="weight"):
        read(one({"file": "x.safetensors", "weight": weight}))


def test_a_missing_weight_is_one_and_said():
    original = read(one({"file": "x.safetensors"}))
    assert entries(original)[0].strength["low_noise"] == 1.0 and any("has no weight" in each for each in original.notices)


@pytest.mark.parametrize(
    ("said", "method"),
    [("injection", "classic"), (" Injection ", "classic"), ("addition", "addition"), (None, "addition"), ("smart", "addition")],
)
def test_only_injection_was_gated(said, method):
    original = read(one({"file": "x", "weight": 1}, **({"method": said} if said else {})))
    assert original.recipe.passes[0].method == method
    assert any("smart" in each for each in original.notices) == (said == "smart")


def test_first_versions_called_features_styles_and_the_pass_name():
    found = {"paths": {}, "pipeline": [{"name": "old", "styles": [{"file": "x", "weight": 1}]}, {"features": []}]}
    assert [each.name for each in read(found).recipe.passes] == ["old", "Pass 2"]


def test_block_shield_is_a_scope_for_each_expert_and_modify_skeleton_lifts_it():
    found = {
        "paths": {},
        "pipeline": [
            {
                "block_shield": True,
                "features": [
                    {"file": "s.safetensors", "weight": 0.5},
                    {"file": "t.safetensors", "weight": 0.25, "modify_skeleton": True},
                ],
            }
        ],
    }
    high, low, free = entries(read(found))
    assert (list(high.files), high.strength, list(low.files), low.strength) == (
        ["high_noise"],
        {"high_noise": 0.5},
        ["low_noise"],
        {"low_noise": 0.5},
    )
    assert free.scope == {} and set(free.files) == set(PAIR)
    for entry, last in ((high, 10), (low, 4)):  # engine v07: blocks <= 10 of high and <= 4 of low are left alone
        kept = [factor(entry.scope, f"blocks.{number}.ffn.0.weight") for number in range(40)]
        assert kept == [0.0] * (last + 1) + [1.0] * (39 - last)
        assert factor(entry.scope, "head.head.weight") == 1.0


@pytest.mark.parametrize("value", [1, "true", None])
def test_shield_switches_are_true_or_false(value):
    with pytest.raises(RecipeError, match="block_shield"):
        read(one({"file": "x", "weight": 1}, block_shield=value))


@pytest.mark.parametrize(
    ("base", "where", "roles"),
    [
        ("wan2.2_high_noise.safetensors", "a.json", ["high_noise"]),
        ("C:\\models\\wan_low.safetensors", "a.json", ["low_noise"]),
        ("base.safetensors", "/low/mix_high_noise.json", ["high_noise"]),
        ("slow_flow.safetensors", "glow.json", ["high_noise", "low_noise"]),
    ],
)
def test_base_and_recipe_name_tell_the_expert_by_whole_words(base, where, roles):
    original = read({"paths": {"base_model": base}, "pipeline": [{"features": [{"file": "x", "weight": 1}]}]}, where)
    assert list(entries(original)[0].files) == roles == list(original.recipe.experts)


def test_a_lora_that_names_an_expert_goes_there_when_the_recipe_names_none():
    found = {
        "paths": {},
        "pipeline": [
            {"features": [{"file": f"{name}.safetensors", "weight": 1} for name in ("a_high_noise", "a_low_noise", "glow")]}
        ],
    }
    original = read(found)
    assert [list(lora.files) for lora in entries(original)] == [["high_noise"], ["low_noise"], ["high_noise", "low_noise"]]


def test_a_lora_of_the_other_expert_stays_and_is_said():
    found = {
        "paths": {"base_model": "wan_low_noise.safetensors"},
        "pipeline": [{"features": [{"file": "a_high_noise.safetensors", "weight": 1}]}],
    }
    original = read(found)
    assert list(entries(original)[0].files) == ["low_noise"] and any(
        "its name says high_noise" in each for each in original.notices
    )


def test_a_recipe_for_the_other_expert_is_refused():
    with pytest.raises(RecipeError, match="is for high_noise, but it is wanted for low_noise"):
        read({"paths": {"base_model": "wan_high_noise"}, "pipeline": []}, role="low_noise")
    with pytest.raises(RecipeError, match="swap"):
        read({"paths": {}, "pipeline": []}, "mix_low.json", experts={"high_noise": "/m/h"})


def test_a_model_that_is_one_file_takes_everything():
    found = {
        "paths": {"global_weight_factor": "0.5"},
        "pipeline": [{"features": [{"file": "\\sub\\a_high.safetensors", "weight": "1;2"}]}],
    }
    original = read(found, experts={"model": "/m/wan.safetensors"})
    assert (entries(original)[0].files, entries(original)[0].strength) == (
        {"model": "loras/sub/a_high.safetensors"},
        {"model": 1.0},
    )
    assert original.recipe.passes[0].global_factor == 0.5


def test_the_base_is_only_compared():
    found = {"paths": {"base_model": "models/WAN_High.safetensors"}, "pipeline": []}
    assert read(found, experts=PAIR).recipe.experts == PAIR
    assert not any("was made for" in each for each in read(found, experts=PAIR).notices)
    other = read({"paths": {"base_model": "models/other.safetensors"}, "pipeline": []}, experts=PAIR)
    assert any(
        "was made for the base 'other.safetensors'" in each and os.path.basename(PAIR["low_noise"]) in each
        for each in other.notices
    )


@pytest.mark.parametrize(("key", "value"), [("density", 1.5), ("density", "x"), ("density", None)])
def test_a_density_out_of_its_bounds_is_an_error(key, value):
    with pytest.raises(RecipeError, match=r"pipeline\[0\].density"):
        read(one({"file": "x", "weight": 1}, **{key: value}))


def test_a_factor_out_of_its_bounds_is_an_error():
    with pytest.raises(RecipeError, match=r"paths\.global_weight_factor"):
        read({"paths": {"global_weight_factor": 5}, "pipeline": []})


def test_density_of_an_addition_is_said_to_be_unused():
    original = read(one({"file": "x", "weight": 1}, density=0.5))
    assert original.recipe.passes[0].dense_density == 1.0 and any("density 0.5: is not used" in each for each in original.notices)


def test_remarks_by_name_are_read_over_and_said():
    original = read({"_note": 1, "paths": {"//x": 2}, "pipeline": []})
    assert any("//x, _note" in each for each in original.notices)
