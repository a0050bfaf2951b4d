"""Which kind of recipe a text is; two texts as one recipe; and what is said about another base."""

import json

import pytest
from wan22_master.engine.errors import RecipeError
from wan22_master.engine.hashes import HashCache
from wan22_master.engine.jobs import file_plan
from wan22_master.engine.recipes import recipe_text
from wan22_master.tests.engine import tiny

OURS = {"version": 1, "title": "t", "experts": {"high_noise": "h", "low_noise": "l"}, "passes": []}
ORIGINAL = {
    "paths": {"base_model": "wan_high_noise.safetensors"},
    "pipeline": [{"features": [{"file": "x_high.safetensors", "weight": 1}]}],
}


def entry(role, merge=file_plan.MERGE, **base):
    recipe = {
        "version": 1,
        "title": "t",
        "experts": {role: base.get("name", "b")},
        "outputs": [{"format": "bf16"}],
        "passes": [{"loras": [{"files": {role: f"x_{role}.safetensors"}, "sha256": {role: "a" * 64}}]}],
    }
    return {
        "version": 1,
        "expert": role,
        "base": base or {"name": "b"},
        "engine": "0.1.0",
        "merge": merge,
        "format": "bf16",
        "recipe": recipe,
    }


def text(found):
    return json.dumps(found)


@pytest.mark.parametrize(("found", "kind"), [(OURS, "recipe"), (ORIGINAL, "original"), (entry("model"), "model")])
def test_the_kind_of_a_recipe_is_seen_in_its_keys(found, kind):
    assert recipe_text.read(text(found), "r.json").kind == kind


def test_our_format_may_have_remarks_too():
    assert recipe_text.read("{ // mine\n" + text(OURS)[1:]).recipe.title == "t"


@pytest.mark.parametrize("found", [{"version": 1}, {}, {"version": 9, "title": "t", "experts": {"model": "m"}}])
def test_what_is_none_of_them_is_an_error_that_names_the_text(found):
    with pytest.raises(RecipeError, match=r"^r\.json: "):
        recipe_text.read(text(found), "r.json")


def test_the_halves_of_a_saved_pair_become_one_recipe():
    high, low = ((text(entry(role, name=f"{role}.safetensors")), role) for role in ("high_noise", "low_noise"))
    told = recipe_text.read_two(high, low)
    [each] = told.recipe.passes
    assert told.recipe.experts == {"high_noise": "high_noise.safetensors", "low_noise": "low_noise.safetensors"}
    assert [lora.files for lora in each.loras] == [
        {"high_noise": "x_high_noise.safetensors", "low_noise": "x_low_noise.safetensors"}
    ]
    assert each.loras[0].sha256 == {"high_noise": "a" * 64, "low_noise": "a" * 64} and set(told.base) == {"high_noise", "low_noise"}
    assert [output.experts for output in told.recipe.outputs] == [("high_noise", "low_noise")]


def test_two_recipes_of_the_original_become_one():
    low = {"paths": {}, "pipeline": [{"features": [{"file": "x_low.safetensors", "weight": 0.5}]}]}
    told = recipe_text.read_two((text(ORIGINAL), "a.json"), (text(low), "b.json"))
    [lora] = told.recipe.passes[0].loras
    assert lora.files == {"high_noise": "loras/x_high.safetensors", "low_noise": "loras/x_low.safetensors"}
    assert lora.strength == {"high_noise": 1.0, "low_noise": 0.5}


def test_a_second_text_alone_is_for_low_noise():
    found = {"paths": {}, "pipeline": [{"features": [{"file": "x.safetensors", "weight": 1}]}]}
    assert list(recipe_text.read_two(("", ""), (text(found), "b")).recipe.passes[0].loras[0].files) == ["low_noise"]


@pytest.mark.parametrize(
    ("high", "low", "said"),
    [
        ("", " \n", "found nothing"),
        (entry("low_noise"), entry("low_noise"), "expected a recipe for high_noise"),
        (entry("high_noise"), entry("high_noise"), "expected a recipe for low_noise"),
        (entry("model"), entry("low_noise"), "found one for model"),
        (ORIGINAL, ORIGINAL, "is for high_noise, but it is wanted for low_noise"),
    ],
)
def test_texts_that_are_no_pair_are_refused(high, low, said):
    with pytest.raises(RecipeError, match=said):
        recipe_text.read_two(*((each if isinstance(each, str) else text(each), "r") for each in (high, low)))


def test_a_recipe_for_an_expert_that_is_not_wired_is_refused():
    with pytest.raises(RecipeError, match="found model"):
        recipe_text.read_two((text(ORIGINAL), "a"), (text(entry("low_noise")), "b"), experts={"model": "/m"})


def test_another_version_of_the_arithmetic_is_said():
    assert recipe_text.read(text(entry("model"))).notices == ()
    assert "the bytes may differ" in recipe_text.read(text(entry("model", merge=0))).notices[0]


def test_the_wired_base_is_compared_by_hash_where_both_are_known_else_by_name(tmp_path):
    path = tiny.save(tmp_path / "B.safetensors", tiny.lora())
    cache = HashCache(None)
    for name, sha256, known, said in (
        ("b.safetensors", None, False, []),
        ("other.safetensors", None, False, ["was made for the base"]),
        ("other.safetensors", True, True, ["is the base it was made from"]),
        ("b.safetensors", "e" * 64, True, ["is another file"]),
    ):
        digest = cache.sha256(path) if sha256 is True else sha256
        told = recipe_text.read(text(entry("model", name=name, **({"sha256": digest} if digest else {}))))
        lines = recipe_text.compare_bases(told, {"model": path}, cache if known else HashCache(None))
        assert len(lines) == len(said) and all(word in line for word, line in zip(said, lines, strict=True))


def test_a_recipe_file_and_a_model_file_are_opened_and_others_are_named(tmp_path):
    (tmp_path / "r.json").write_bytes(b"\xef\xbb\xbf" + text(OURS).encode())
    assert recipe_text.read(*recipe_text.load(tmp_path / "r.json")).recipe.title == "t"
    model = tiny.save(
        tmp_path / "m.safetensors", tiny.lora(), {"wan22_master": text(entry("model") | {"passes": [], "before": []})}
    )
    body, where = recipe_text.load(model)
    assert where == model and set(json.loads(body)) == set(entry("model"))
    (tmp_path / "x.json").write_bytes(b"\xff\xfe")
    for name, said in (("x.json", "UTF-8"), ("gone.json", "cannot be opened")):
        with pytest.raises(RecipeError, match=said):
            recipe_text.load(tmp_path / name)
