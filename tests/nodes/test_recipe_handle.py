"""A recipe as a handle and back: nothing is lost on the wire."""
from wan22_master.engine.recipes.recipe import parse
from wan22_master.nodes.recipe_handle import handle_of, json_of

ASKED = {
    "version": 1, "title": "t", "experts": {"high_noise": "h", "low_noise": "l"}, "normalize": True, "compat": "comfyui",
    "strict": True, "strict_share": 0.05, "allow_twice": True,
    "passes": [{"name": "one", "method": "adaptive", "global_factor": 0.5, "gate_distillation": True, "classic": {"novelty": 2.0},
                "adaptive": {"limit_new": 0.2}, "combine": "breadcrumbs", "density": 0.7, "gamma": 0.02, "seed": 9, "t": 0.3,
                "dense_density": 0.4, "dense_mode": "dare", "scope": {"0-8": 0.5},
                "loras": [{"files": {"high_noise": "a", "low_noise": "b"}, "strength": "3;1.5", "method": "classic",
                           "scope": {"ffn": 2.0}, "rs_lora": True, "protected": False},
                          {"files": {"low_noise": "c"}, "strength": {"low_noise": 0.5}}]}],
}


def test_passes_and_options_come_back_as_they_were():
    recipe = parse(ASKED)
    handle = handle_of(recipe)
    again = parse(ASKED | json_of(handle, recipe.roles))
    assert again == recipe and hash(handle) == hash(handle_of(again))


def test_a_recipe_of_a_pair_goes_onto_a_model_that_is_one_file():
    made = json_of(handle_of(parse(ASKED)), ("model",))
    [each] = parse(ASKED | made | {"experts": {"model": "m"}}).passes
    assert [lora.files for lora in each.loras] == [{"model": "a"}] and each.loras[0].strength == {"model": 3.0}
