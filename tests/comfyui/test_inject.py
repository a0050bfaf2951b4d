"""Inject and LoRA Pair in a real ComfyUI: methods, passes, recipes, and LoRAs on the wrong expert."""
import pytest
from comfy_server import text_of
from graphs import INJECT, LIGHTNING, LOAD, LORA_1, LORA_2, METER, QUANTIZE, SAVE, SINGLE, STYLE, main_job, node

LIGHTNING_LINE, STYLE_LINE = f"{LIGHTNING}: 1200 of 1200 keys", f"{STYLE}: 1200 of 1200 keys"


def planned(**changes) -> dict:
    """The main job as a plan; changes: of Inject's inputs."""
    graph = main_job(plan_only=True)
    graph[INJECT]["inputs"] |= changes
    del graph[METER]
    graph[QUANTIZE]["inputs"]["model"] = [INJECT, 0]
    return graph


def method_of(text: str, line: str) -> str:
    return next(each for each in text.splitlines() if each.startswith(line)).rpartition(", ")[2]


@pytest.mark.parametrize(("asked", "insist", "lightning", "style"), [
    ("auto", False, "addition", "addition"), ("classic", False, "addition", "classic"), ("classic", True, "classic", "classic")])
def test_a_distillation_lora_is_gated_only_when_the_user_insists(comfy, asked, insist, lightning, style):
    outputs = comfy.run(planned(method=asked, gate_distillation=insist))
    text = text_of(outputs, INJECT)
    assert (method_of(text, LIGHTNING_LINE), method_of(text, STYLE_LINE)) == (lightning, style)
    for told in (text, text_of(outputs, SAVE)):
        assert ("is added, not gated" in told) == (asked == "classic" and not insist)


def test_one_lora_may_have_a_method_of_its_own(comfy):
    graph = planned()
    graph[LORA_2]["inputs"]["method"] = "classic"
    text = text_of(comfy.run(graph), INJECT)
    assert (method_of(text, LIGHTNING_LINE), method_of(text, STYLE_LINE)) == ("addition", "classic")


def test_two_injects_are_two_passes_and_the_factor_multiplies_strengths(comfy):
    graph = planned(stack=[LORA_1, 0])
    second = {**graph[INJECT]["inputs"], "dit": [INJECT, 0], "stack": ["9", 0], "global_factor": 0.5}
    graph |= {"9": {**graph[LORA_2], "inputs": {key: value for key, value in graph[LORA_2]["inputs"].items() if key != "stack"}},
              "10": node("Wan22ActionMasterInject", **second)}
    graph[QUANTIZE]["inputs"]["model"] = ["10", 0]
    outputs = comfy.run(graph)
    text = text_of(outputs, "10")
    assert LIGHTNING_LINE in text and f"{STYLE_LINE}, rank 8, alpha/rank 0.5, strength 0.4, addition" in text


def test_a_recipe_of_one_inject_goes_onto_another_model_and_excludes_a_stack(comfy):
    graph = planned()
    again = {key: value for key, value in graph[INJECT]["inputs"].items() if key != "stack"}
    graph["10"] = node("Wan22ActionMasterInject", **(again | {"dit": [LOAD, 0], "recipe": [INJECT, 1]}))
    graph[QUANTIZE]["inputs"]["model"] = ["10", 0]
    outputs = comfy.run(graph)
    assert text_of(outputs, "10") == text_of(outputs, INJECT)
    graph["10"]["inputs"]["stack"] = [LORA_2, 0]
    assert "one of the two" in comfy.fail(graph)


def test_a_lora_of_the_other_expert_passes_only_with_a_warning(comfy):
    graph = planned(on_mismatch="warn")
    graph[LORA_2]["inputs"].update(lora_high=STYLE.replace("high", "low"), lora_low="(none)")
    assert "is put on high_noise, but made for low_noise" in text_of(comfy.run(graph), INJECT)


def test_a_switched_off_half_is_left_out_and_a_switched_off_lora_leaves_the_stack(comfy):
    graph = planned()
    graph[LORA_2]["inputs"].update(enabled_high=False)
    text = text_of(comfy.run(graph), INJECT)
    high, low = text.split("low_noise:")
    assert STYLE not in high and STYLE.replace("high", "low") in low
    graph[LORA_2]["inputs"].update(enabled_low=False)
    outputs = comfy.run(graph)
    assert "my_style" not in text_of(outputs, INJECT) and "passes unchanged" in text_of(outputs, LORA_2)


def test_a_half_for_no_loaded_expert_is_told_with_the_reason(comfy):
    low_style = STYLE.replace("high", "low")
    graph = planned()
    graph[LOAD]["inputs"]["low_noise"] = "(none)"
    assert f"not used: {low_style}: the low_noise expert is not loaded" in text_of(comfy.run(graph), INJECT)
    graph[LORA_2]["inputs"]["enabled_high"] = False
    told = f"not used: {low_style}: lora_high is switched off, and the low_noise expert is not loaded"
    assert told in text_of(comfy.run(graph), INJECT)
    graph[LOAD]["inputs"]["high_noise"] = SINGLE
    told = f"not used: {low_style}: lora_high is switched off, and a model that is one file takes lora_high alone"
    assert told in text_of(comfy.run(graph), INJECT)


def test_a_lora_without_its_other_half_is_an_error_that_names_the_ways_out(comfy):
    alone = comfy.models("loras") / "alone_high_noise.safetensors"
    alone.write_bytes((comfy.models("loras") / STYLE).read_bytes())
    graph = planned()
    graph[LORA_2]["inputs"]["lora_high"] = alone.name
    assert "choose lora_low by hand, or (none), or (same file)" in comfy.fail(graph)
    graph[LORA_2]["inputs"]["lora_low"] = "(same file)"
    assert "nothing was written" in text_of(comfy.run(graph), SAVE)
    alone.unlink()
