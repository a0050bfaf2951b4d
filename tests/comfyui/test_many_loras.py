"""Many LoRAs at once, options of Inject, and checkpoints mixed into a model, in a real ComfyUI."""
import json

import pytest
from comfy_server import text_of
from graphs import HIGH, INJECT, LIGHTNING, LORA_1, LORA_2, LOW, METER, QUANTIZE, SAVE, STYLE, main_job, node, quantize, save
from safetensors.torch import load_file
from tiny_models import TINY
from wan22_master.engine.synthetic import write_lora, write_model

LOW_LIGHTNING, LOW_STYLE = LIGHTNING.replace("high", "low"), STYLE.replace("high", "low")
LIST = "9"


def planned(stack: dict, **changes) -> dict:
    """Load, one node that makes a stack, Inject, Quantize, Save as a plan. changes: of Inject's inputs."""
    graph = main_job(plan_only=True)
    graph[LIST] = stack
    graph[INJECT]["inputs"] |= {"stack": [LIST, 0], **changes}
    graph[QUANTIZE]["inputs"]["model"] = [INJECT, 0]
    return {place: each for place, each in graph.items() if place not in {LORA_1, LORA_2, METER}}


def lines(text: str, missing: str = "error") -> dict:
    return node("Wan22LoraList", loras=text, missing_half=missing)


def test_halves_in_a_list_of_lines_find_each_other(comfy):
    text = f"# comment\n{LOW_STYLE} : 0.5\n{LIGHTNING} : 3.0;1.5\n{STYLE}: 0.8\n{LOW_LIGHTNING}:1\n"
    outputs = comfy.run(planned(lines(text)))
    said, ledger = text_of(outputs, LIST), text_of(outputs, INJECT)
    assert f"{LOW_STYLE}: low_noise" in said and f"{STYLE}: high_noise, its other half" in said
    high, low = ledger.split("low_noise:")
    assert f"{LIGHTNING}: 1200 of 1200" in high and "strength 3" in high and "strength 0.8" in high
    assert f"{LOW_LIGHTNING}: 1200 of 1200" in low and "strength 1," in low and "strength 0.5" in low and STYLE not in low


def test_a_missing_half_is_an_error_added_or_meant(comfy):
    assert "made for high_noise alone" in comfy.fail(planned(lines(STYLE)))
    added = text_of(comfy.run(planned(lines(STYLE, "add"))), INJECT)
    assert STYLE in added and LOW_STYLE in added
    meant = text_of(comfy.run(planned(lines(f"{STYLE}: 0.7 @both"))), INJECT)
    assert meant.count(STYLE) >= 2 and LOW_STYLE not in meant


def test_a_line_that_makes_no_sense_is_named(comfy):
    assert "line 2: expected `name : strength`" in comfy.fail(planned(lines(f"{STYLE} : 1\n{STYLE} : much")))


def test_the_community_s_lora_stack_is_taken(comfy):
    entries = [(LIGHTNING, 1.0, 1.0), (LOW_LIGHTNING, 0.6, 1.0), ("None", 1.0, 1.0)]
    graph = planned(node("Wan22ImportLoraStack", lora_stack=["10", 0], side="auto", missing_half="error"))
    graph["10"] = node("Wan22TestLoraStack", stack=json.dumps(entries))
    ledger = text_of(comfy.run(graph), INJECT)
    assert f"{LIGHTNING}: 1200" in ledger and f"{LOW_LIGHTNING}: 1200" in ledger and "strength 0.6" in ledger


@pytest.mark.parametrize(("changes", "said"), [
    ({"blocks": "8-0: 1"}, "inject: blocks:"), ({"density": 1.5}, "density"),
    ({"combine": "slerp"}, "slerp takes exactly two LoRAs, found 1")])
def test_rules_that_make_no_sense_are_refused(comfy, changes, said):
    assert said in comfy.fail(planned(lines(f"{STYLE} : 1 @both"), **changes))


def test_strict_refuses_a_lora_of_which_much_is_lost(comfy):
    lora = comfy.models("loras") / "renamed_both.safetensors"
    write_lora(lora, TINY, "native", "renamed")
    content = lora.read_bytes()
    lora.write_bytes(content.replace(b"diffusion_model.blocks.7.", b"diffusion_model.blocks.x."))
    graph = planned(lines(f"{lora.name} : 1 @both"))
    assert "refused" in text_of(comfy.run(graph), INJECT)
    strict = comfy.fail(planned(lines(f"{lora.name} : 1 @both"), strict=True))
    assert "strict" in strict and lora.name in strict


def test_checkpoints_are_mixed_and_saved(clean):
    for role in ("high", "low"):
        write_model(clean.models() / f"tuned_{role}_noise.safetensors", TINY, f"tuned {role}")
    graph = {
        "1": node("Wan22LoadDualDiT", high_noise=HIGH, low_noise=LOW, allow_quantized_source=False),
        "2": node("Wan22LoadDualDiT", high_noise="tuned_high_noise.safetensors", low_noise="(auto pair)",
                  allow_quantized_source=False),
        "4": node("Wan22MergeCheckpoints", a=["1", 0], b=["2", 0], method="weighted_sum", strength_high=0.25, strength_low=0.5,
                  density=1.0, drop_seed=0, blocks=""),
        QUANTIZE: quantize(["4", 0], "fp32"), SAVE: save([QUANTIZE, 0], title="mixed"),
    }
    outputs = clean.run(graph)
    assert "high_noise: weighted_sum of tuned_high_noise.safetensors into " in text_of(outputs, "4")
    for name, other, share in ((HIGH, "tuned_high_noise.safetensors", 0.25), (LOW, "tuned_low_noise.safetensors", 0.5)):
        [path] = clean.models().glob(f"mixed*{'high' if name == HIGH else 'low'}*")
        found, a, b = (load_file(each) for each in (path, clean.models() / name, clean.models() / other))
        for key in a:
            wanted = a[key].double() + share * (b[key].double() - a[key].double())
            assert (found[key].double() - wanted).abs().max() <= 2**-23 * wanted.abs().max(), key   # two float32 operations
    wrong = graph | {"4": node("Wan22MergeCheckpoints", **(graph["4"]["inputs"] | {"method": "ties"}))}
    assert "c is not connected" in clean.fail(wrong)
