"""Recipes without a LoRA, of two halves, and with one LoRA twice."""

import json

import pytest
from wan22_master.engine.errors import RecipeError
from wan22_master.engine.recipes import recipe_edit
from wan22_master.engine.recipes.recipe import parse

A, B, C = "a" * 64, "ab" + "c" * 62, "d" * 64
PAIR = ("high_noise", "low_noise")


def recipe(*passes, experts=PAIR, **more):
    return parse(
        {"version": 1, "title": "t", "experts": {role: f"{role}.safetensors" for role in experts}, "passes": list(passes), **more}
    )


def lora(name, sha256=None, roles=PAIR, **more):
    return {"files": dict.fromkeys(roles, name), **({"sha256": dict.fromkeys(roles, sha256)} if sha256 else {}), **more}


THREE = recipe(
    {"name": "one", "loras": [lora("x/style.safetensors", A), lora("style_v2.safetensors", B)]},
    {"loras": [lora("C:\\l\\Motion.safetensors", C, ("low_noise",))]},
)


def left(found):
    return [[recipe_edit.names(each) for each in one.loras] for one in found.passes]


@pytest.mark.parametrize(
    ("what", "gone"),
    [
        ("style.safetensors", 1),
        ("style", 1),
        ("x/style.safetensors", 1),
        ("STYLE_V2", 2),
        ("motion", 3),
        ("Motion.safetensors", 3),
        ("#2", 2),
        ("3", 3),
        (A, 1),
        ("aaaaaaaa", 1),
        ("sha256:" + B[:10], 2),
        (C.upper(), 3),
        (" 1 ", 1),
    ],
)
def test_one_lora_is_left_out_by_name_number_or_hash(what, gone):
    there = [["style.safetensors", "style_v2.safetensors"], ["Motion.safetensors"]]
    want = [[name for name in names if name != [each for row in there for each in row][gone - 1]] for names in there]
    assert left(recipe_edit.without(THREE, what)) == want and left(THREE) == there


def test_an_exact_name_comes_before_one_in_other_case():
    both = recipe({"loras": [lora("Style.safetensors"), lora("style.safetensors")]})
    assert left(recipe_edit.without(both, "style")) == [["Style.safetensors"]]
    with pytest.raises(RecipeError, match="found several"):
        recipe_edit.without(both, "STYLE")


def test_several_are_left_out_by_their_numbers_of_before():
    assert left(recipe_edit.without(THREE, "1", "2")) == [[], ["Motion.safetensors"]]
    assert recipe_edit.without(THREE) == THREE


@pytest.mark.parametrize("what", ["styl", "0", "#4", "aaaaaaa", "e" * 64, "", "safetensors"])
def test_what_is_no_lora_of_it_is_an_error_that_lists_them(what):
    with pytest.raises(RecipeError, match="found none") as told:
        recipe_edit.without(THREE, what)
    assert "#3 Motion.safetensors (low_noise; pass 2; dddddddddd)" in str(told.value) and "#1 style.safetensors" in str(told.value)


def test_an_ambiguous_name_lists_only_what_it_may_mean():
    twice = recipe({"loras": [lora("a/x.safetensors"), lora("b/x.safetensors"), lora("y.safetensors")]})
    with pytest.raises(RecipeError, match="found several") as told:
        recipe_edit.without(twice, "x")
    assert (
        "#1 x.safetensors" in str(told.value) and "#2 x.safetensors" in str(told.value) and "y.safetensors" not in str(told.value)
    )


def test_two_halves_become_one_recipe():
    high = recipe(
        {
            "name": "p",
            "method": "classic",
            "loras": [lora("s_high.safetensors", A, PAIR[:1], strength={PAIR[0]: 0.5}), lora("h_only.safetensors", B, PAIR[:1])],
        },
        experts=PAIR[:1],
        outputs=[{"format": "bf16"}],
    )
    low = recipe(
        {"name": "p", "method": "classic", "loras": [lora("s_low.safetensors", C, PAIR[1:])]},
        {"loras": [lora("z.safetensors", None, PAIR[1:])]},
        experts=PAIR[1:],
        outputs=[{"format": "bf16"}],
    )
    found = recipe_edit.join(high, low)
    assert found.experts == {"high_noise": "high_noise.safetensors", "low_noise": "low_noise.safetensors"}
    first, _ = found.passes
    both, alone = first.loras
    assert both.files == {"high_noise": "s_high.safetensors", "low_noise": "s_low.safetensors"} and both.sha256 == {
        "high_noise": A,
        "low_noise": C,
    }
    assert both.strength == {"high_noise": 0.5} and list(alone.files) == ["high_noise"] and first.method == "classic"
    assert left(found)[1] == ["z.safetensors"] and [output.experts for output in found.outputs] == [PAIR]


@pytest.mark.parametrize("change", [{"method": "addition"}, {"global_factor": 0.5}, {"scope": {"ffn": 0.5}}, {"combine": "ties"}])
def test_passes_of_other_rules_stay_apart(change):
    high, low = (
        recipe({"name": "p", "loras": [lora("s.safetensors", None, (role,))], **more}, experts=(role,))
        for role, more in zip(PAIR, ({}, change), strict=True)
    )
    assert [list(each.loras[0].files) for each in recipe_edit.join(high, low).passes] == [["high_noise"], ["low_noise"]]


@pytest.mark.parametrize("change", [{"method": "addition"}, {"scope": {"0-10": 0.0}}, {"protected": True}])
def test_loras_that_are_merged_otherwise_stay_apart(change):
    high, low = (
        recipe({"loras": [lora("s.safetensors", None, (role,), **more)]}, experts=(role,))
        for role, more in zip(PAIR, ({}, change), strict=True)
    )
    assert [list(each.files) for each in recipe_edit.join(high, low).passes[0].loras] == [["high_noise"], ["low_noise"]]


def test_halves_that_contradict_each_other_are_refused():
    high, low = recipe(experts=PAIR[:1]), recipe(experts=PAIR[1:], compat="comfyui")
    with pytest.raises(RecipeError, match="compat: expected the same"):
        recipe_edit.join(high, low)
    with pytest.raises(RecipeError, match="one recipe for high_noise and one for low_noise"):
        recipe_edit.join(recipe(), recipe())


def said(*hashes):
    return {"wan22_master": json.dumps({"passes": [{"loras": [{"sha256": each, "name": f"old_{each[0]}"} for each in hashes]}]})}


@pytest.mark.parametrize("role", PAIR)
def test_a_lora_that_is_in_the_base_is_refused_by_name(role):
    paths = {"x/style.safetensors": A, "style_v2.safetensors": B, "C:\\l\\Motion.safetensors": C}
    recipe_edit.check_twice(THREE, paths, {role: said("e" * 64), "other": said(A)})
    with pytest.raises(
        RecipeError, match=rf"one: style.safetensors: is in the {role} base already \(as old_a\), by its SHA-256 aaaaaaaaaa"
    ):
        recipe_edit.check_twice(THREE, paths, {role: said(A)})
    recipe_edit.check_twice(parse({**THREE.to_json(), "allow_twice": True}), paths, {role: said(A)})


def test_one_content_twice_on_an_expert_is_refused_also_under_two_names():
    twice = recipe({"name": "p", "loras": [lora("a.safetensors")]}, {"loras": [lora("b.safetensors", None, PAIR[1:])]})
    with pytest.raises(RecipeError, match=r"pass 2: b.safetensors: is merged into low_noise twice, here and in p as a.safetensors"):
        recipe_edit.check_twice(twice, {"a.safetensors": A, "b.safetensors": A}, {})
    recipe_edit.check_twice(twice, {"a.safetensors": A, "b.safetensors": B}, {})
    apart = recipe({"loras": [lora("a.safetensors", None, PAIR[:1]), lora("a.safetensors", None, PAIR[1:])]})
    recipe_edit.check_twice(apart, {"a.safetensors": A}, {})


@pytest.mark.parametrize("zero", [{"strength": {"high_noise": 0.0, "low_noise": 0.0}}, {}])
def test_what_has_no_strength_does_not_count(zero):
    found = recipe(
        {"loras": [lora("a.safetensors")]}, {"global_factor": 1.0 if zero else 0.0, "loras": [lora("a.safetensors", **zero)]}
    )
    with pytest.raises(RecipeError, match="is merged into high_noise twice"):
        recipe_edit.check_twice(recipe(*[{"loras": [lora("a.safetensors")]}] * 2), {"a.safetensors": A}, {})
    recipe_edit.check_twice(found, {"a.safetensors": A}, {})


@pytest.mark.parametrize(
    ("high", "low", "wanted"),
    [
        ("ab", "ba", ["a-", "bb", "-a"]),
        ("ab", "ab", ["aa", "bb"]),
        ("a", "xa", ["-x", "aa"]),
        ("cab", "abd", ["c-", "aa", "bb", "-d"]),
        ("abc", "cab", ["-c", "aa", "bb", "c-"]),
        ("a", "b", ["a-", "-b"]),
        ("aa", "a", ["aa", "a-"]),
    ],
)
def test_joining_changes_the_order_in_neither_half(high, low, wanted):
    halves = [
        recipe({"loras": [lora(f"{each}_{word}.safetensors", None, (role,)) for each in names], "combine": "ties"}, experts=(role,))
        for names, word, role in zip((high, low), ("high", "low"), PAIR, strict=True)
    ]
    [found] = recipe_edit.join(*halves).passes
    assert ["".join(lora.files.get(role, "-")[0] for role in PAIR) for lora in found.loras] == wanted
    for half, role in zip(halves, PAIR, strict=True):
        there = [lora.files[role] for lora in half.passes[0].loras]
        assert [lora.files[role] for lora in found.loras if role in lora.files] == there
