"""What bad input gets in a real ComfyUI: an error that names the way out, and no file."""
import pytest
from graphs import HIGH, INJECT, LOAD, LORA_1, LOW, QUANTIZE, main_job, single_job

CASES = {
    "a subfolder that climbs out": ({}, {"subfolder": "../../custom_nodes"}, "inside diffusion_models"),
    "a subfolder from the root": ({}, {"subfolder": "/etc"}, "inside diffusion_models"),
    "a title with a separator": ({}, {"title": "../evil"}, "file name"),
    "a custom name with a separator": ({}, {"name": "custom", "custom_name": "a/%title%%expert%"}, "file name"),
    "one name for both experts": ({}, {"name": "custom", "custom_name": "%title%"}, "put %expert% into it"),
    "an unknown word in the name": ({}, {"name": "custom", "custom_name": "%title%_%expert%_%seed%"}, "%seed% is not known"),
    "an empty title": ({}, {"title": " "}, "save model: title is empty"),
    "an empty custom name": ({}, {"name": "custom", "custom_name": ""}, "save model: custom_name is empty"),
    "the same file twice": ({LOAD: {"low_noise": HIGH}}, {}, "same file twice"),
    "swapped experts": ({LOAD: {"high_noise": LOW, "low_noise": HIGH}}, {}, "swap"),
    "a low expert as high": ({LOAD: {"high_noise": LOW}}, {}, "choose it in low_noise"),
    "no model at all": ({LOAD: {"high_noise": "(none)"}}, {}, "no model is chosen"),
    "a model that is not listed": ({LOAD: {"high_noise": "../../secret.safetensors"}}, {}, "not in list"),
    "a LoRA of another width": ({LORA_1: {"lora_high": "other_width.safetensors"}}, {}, "nothing of it fits"),
    "a low LoRA on the high expert":
        ({LORA_1: {"lora_high": "my_style_low_noise.safetensors", "lora_low": "(none)"}}, {}, "on_mismatch"),
    "no LoRAs at Inject": ({INJECT: {"stack": None}}, {}, "connect a LoRA Pair"),
    "one format twice": ({QUANTIZE: {"more": ["8", 0]}}, {}, "quantize: float8_e4m3fn of high_noise is asked for twice"),
    "a strength over a link": ({LORA_1: {"strength_low": ["9", 0]}}, {}, "lora pair: strength_low: expected -100 to 100, found"),
    "a constant over a link": ({INJECT: {"classic_novelty": ["9", 0]}}, {}, "inject: classic_novelty: expected 0 to 100"),
}


def everything(comfy) -> list:
    return sorted(path for path in comfy.base.rglob("*") if "user" not in path.parts)


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_with_the_way_out_and_nothing_is_written(comfy, case):
    changes, saving, message = CASES[case]
    graph = main_job(**saving)
    graph["8"] = {"class_type": "Wan22Quantize", "inputs": {**graph[QUANTIZE]["inputs"]}}
    graph["9"] = {"class_type": "PrimitiveFloat", "inputs": {"value": 1000.0}}
    for place, inputs in changes.items():
        for key, value in inputs.items():
            graph[place]["inputs"][key] = value
            if value is None:
                del graph[place]["inputs"][key]
    before = everything(comfy)
    assert message in comfy.fail(graph)
    assert everything(comfy) == before


def test_a_truncated_model_is_named_with_what_is_missing(clean):
    whole = (clean.models() / HIGH).read_bytes()
    (clean.models() / "cut.safetensors").write_bytes(whole[:-1000])
    message = clean.fail(single_job(model="cut.safetensors"))
    assert "cut.safetensors" in message and "truncated: 1000 bytes missing" in message


def test_a_name_that_is_taken_gets_a_number_or_an_error_as_asked(clean):
    taken = clean.models() / "my_mix_v1_t2v_high_noise_d128_fp8_scaled.safetensors"
    taken.write_bytes(b"somebody's file")
    assert "set on_exists to number or overwrite" in clean.fail(main_job(on_exists="error"))
    clean.run(main_job())
    assert taken.read_bytes() == b"somebody's file"
    assert all((clean.models() / f"my_mix_v1_t2v_{half}_noise_d128_fp8_scaled-2.safetensors").exists() for half in ("high", "low"))
