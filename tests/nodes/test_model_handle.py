from wan22_master.engine.recipes.recipe import parse
from wan22_master.nodes.handles import Job, Output
from wan22_master.nodes.model_handle import AS_INTENDED, ModelDit


def test_two_quantize_nodes_of_one_model_mean_the_same_merge():
    model = object()
    assert ModelDit(model, "a") == ModelDit(model, "a") != ModelDit(object(), "a")
    assert ModelDit(model, "a") != ModelDit(model, "a", AS_INTENDED)


def test_it_says_what_a_dit_says_and_the_engine_takes_it_for_one_file():
    dit = ModelDit(object(), "model.safetensors")
    output = Output("bf16", "fast_uncalibrated", dit.roles)
    recipe = parse({"version": 1, "title": "t", "experts": dict(dit.experts), "outputs": [output.as_json()]})
    assert recipe.experts == {"model": "model.safetensors"} and recipe.outputs[0].experts == ("model",)
    high = ModelDit(object(), "model.safetensors", role="high_noise")
    assert high.roles == ("high_noise",) and dict(high.experts) == {"high_noise": "model.safetensors"}
    assert repr(Job(dit, (output,))) == "Job(ModelDit(model.safetensors) as bf16)"
