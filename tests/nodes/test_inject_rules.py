"""What Inject's widgets say becomes fields of the recipe; options of a chain must agree."""
import json
import sys
import types

import pytest
from wan22_master.engine.errors import RecipeError
from wan22_master.engine.recipes.recipe import parse

comfy_api = types.ModuleType("comfy_api.latest")
comfy_api.io = types.SimpleNamespace(Input=object, Combo=None, Float=None, Int=None, String=None, Boolean=None)


@pytest.fixture
def widgets(monkeypatch):
    monkeypatch.setitem(sys.modules, "comfy_api", types.ModuleType("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", comfy_api)
    from wan22_master.nodes import inject_widgets

    return inject_widgets


def dit(options="{}", passes=()):
    from wan22_master.nodes.handles import Dit

    return Dit((("model", "m"),), "t", passes=passes, options=options)


def test_widgets_become_fields_of_a_pass(widgets):
    rules = widgets.RULES | {"combine": "ties", "slerp_t": 0.25, "drop_seed": 7, "blocks": "0-8: 0.5, ffn: 0.8"}
    settings = json.loads(widgets.settings_of(rules, {"adaptive_limit_new": 0.1, "classic_novelty": 2.0}))
    [each] = parse({"version": 1, "title": "t", "experts": {"model": "m"}, "passes": [{"loras": [], **settings}]}).passes
    assert (each.combine, each.t, each.seed, each.scope) == ("ties", 0.25, 7, {"0-8": 0.5, "ffn": 0.8})
    assert each.adaptive.limit_new == 0.1 and each.adaptive.limit_refine == 0.05 and each.classic.novelty == 1.5


@pytest.mark.parametrize(("rules", "said"), [({"density": 1.01}, "density"), ({"slerp_t": -0.1}, "slerp_t"),
                                             ({"blocks": "x: 1"}, "inject: blocks: 'x'")])
def test_what_makes_no_sense_is_named(widgets, rules, said):
    with pytest.raises(RecipeError, match=said):
        widgets.settings_of(widgets.RULES | rules, {})


def test_options_of_a_chain_add_up_and_compat_must_agree(widgets):
    first = widgets.options_of(dit(), widgets.OPTIONS | {"strict": True, "strict_share": 0.2})
    second = json.loads(widgets.options_of(dit(first, (1,)), widgets.OPTIONS | {"normalize": True, "strict_share": 0.001}))
    assert second == {"compat": "correct", "normalize": True, "strict": True, "strict_share": 0.2, "allow_twice": False}
    with pytest.raises(RecipeError, match="compat is comfyui, but correct in the Inject before it"):
        widgets.options_of(dit(first, (1,)), widgets.OPTIONS | {"compat": "comfyui"})
    assert json.loads(widgets.options_of(dit(), widgets.OPTIONS | {"compat": "comfyui"}))["compat"] == "comfyui"


def test_defaults_of_the_widgets_are_those_of_the_recipe(widgets):
    [each] = parse({"version": 1, "title": "t", "experts": {"model": "m"}, "passes": [{"loras": []}]}).passes
    said = json.loads(widgets.settings_of(widgets.RULES, {}))
    assert said.pop("adaptive") == {} and {name: getattr(each, name) for name in said} == said
    told = {name: value for name, (value, _) in widgets.CONSTANTS.items()}
    constants = {name: value for name, value in vars(each.adaptive).items() if name != "negligible"}
    recipe = parse({"version": 1, "title": "t", "experts": {"model": "m"}})
    assert told == constants and {name: getattr(recipe, name) for name in widgets.OPTIONS} == widgets.OPTIONS
