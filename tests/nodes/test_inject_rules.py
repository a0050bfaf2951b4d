"""What Inject's widgets say becomes fields of the recipe; options of a chain must agree."""
import json

import pytest
from wan22_master.engine.errors import RecipeError
from wan22_master.engine.recipes.recipe import parse
from wan22_master.nodes import inject_rules as widgets
from wan22_master.nodes.handles import Dit
from wan22_master.nodes.recipe_handle import OPTIONS


def dit(options="{}", passes=()):
    return Dit((("model", "m"),), "t", passes=passes, options=options)


def test_widgets_become_fields_of_a_pass():
    rules = widgets.RULES | {"combine": "ties", "slerp_t": 0.25, "drop_seed": 7, "blocks": "0-8: 0.5, ffn: 0.8"}
    settings = json.loads(widgets.settings_of(rules, {"adaptive_limit_new": 0.1, "classic_novelty": 2.0}))
    [each] = parse({"version": 1, "title": "t", "experts": {"model": "m"}, "passes": [{"loras": [], **settings}]}).passes
    assert (each.combine, each.t, each.seed, each.scope) == ("ties", 0.25, 7, {"0-8": 0.5, "ffn": 0.8})
    assert each.adaptive.limit_new == 0.1 and each.adaptive.limit_refine == 0.05 and each.classic.novelty == 1.5


@pytest.mark.parametrize(("rules", "said"), [({"density": 1.01}, "density"), ({"slerp_t": -0.1}, "slerp_t"),
                                             ({"blocks": "x: 1"}, "inject: blocks: 'x'"),
                                             ({"combine": "ties", "density": 0.0}, "ties would keep nothing")])
def test_what_makes_no_sense_is_named(rules, said):
    with pytest.raises(RecipeError, match=said):
        widgets.settings_of(widgets.RULES | rules, {})


def test_options_of_a_chain_add_up_and_compat_must_agree():
    first = widgets.options_of(dit(), OPTIONS | {"strict": True, "strict_share": 0.2})
    second = json.loads(widgets.options_of(dit(first, (1,)), OPTIONS | {"normalize": True, "strict_share": 0.001}))
    assert second == {"compat": "correct", "normalize": True, "strict": True, "strict_share": 0.2, "allow_twice": False}
    with pytest.raises(RecipeError, match="compat is comfyui, but correct in the Inject before it"):
        widgets.options_of(dit(first, (1,)), OPTIONS | {"compat": "comfyui"})
    assert json.loads(widgets.options_of(dit(), OPTIONS | {"compat": "comfyui"}))["compat"] == "comfyui"


def test_defaults_of_the_widgets_are_those_of_the_recipe():
    [each] = parse({"version": 1, "title": "t", "experts": {"model": "m"}, "passes": [{"loras": []}]}).passes
    said = json.loads(widgets.settings_of(widgets.RULES, {}))
    assert said.pop("adaptive") == {} and {name: getattr(each, name) for name in said} == said
    told = {name: value for name, (value, _) in widgets.CONSTANTS.items()}
    constants = {name: value for name, value in vars(each.adaptive).items() if name != "negligible"}
    recipe = parse({"version": 1, "title": "t", "experts": {"model": "m"}})
    assert told == constants and {name: getattr(recipe, name) for name in OPTIONS} == OPTIONS


def test_shares_of_adaptive_that_contradict_each_other_are_refused():
    with pytest.raises(RecipeError, match="adaptive_share_floor <= adaptive_share_ceiling"):
        widgets.settings_of(widgets.RULES, {"adaptive_share_floor": 0.9, "adaptive_share_ceiling": 0.1})


def test_a_recipe_keeps_its_rules_and_takes_the_allowance_of_the_node():
    one, other = OPTIONS | {"normalize": True}, OPTIONS | {"allow_twice": True, "strict": True, "strict_share": 0.2}
    assert widgets.both_options(one, other) == one | other | {"normalize": True}
    [told] = widgets.overruled({"method": "classic", "global_factor": 1.0, "combine": "ties"})
    assert told.endswith("not used here: method, combine") and widgets.overruled({"method": "auto"}) == []


def test_what_is_more_than_a_sum_is_told():
    recipe = parse({"version": 1, "title": "t", "experts": {"model": "m"}, "normalize": True, "strict": True, "passes": [
        {"name": "one", "loras": [], "combine": "ties", "density": 0.3, "scope": {"0-8": 0.5}}, {"name": "two", "loras": []}]})
    one, whole = widgets.describe_rules(recipe)
    assert (one, whole) == ("one: ties, density 0.3, blocks 0-8: 0.5", "whole merge: normalize, strict above 1.0%")
