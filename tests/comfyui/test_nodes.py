"""The nodes as a real ComfyUI lists them. Ids, inputs and their order are users' saved workflows: they only grow, at the end."""
import json
import re

import pytest
from comfy_server import PACK
from wan22_master.engine.gguf_mix import MIXES

# node -> inputs in the order of their widgets and sockets; saved widget values are positional
INPUTS = {
    "Wan22LoadDualDiT": "high_noise low_noise allow_quantized_source",
    "Wan22LoraPair": "lora_high lora_low strength_high strength_low enabled_high enabled_low method stack blocks experts rs_lora "
                     "protected",
    "Wan22ActionMasterInject": "dit method global_factor pass_name gate_distillation on_mismatch classic_novelty "
                               "classic_sensitivity_new classic_sensitivity_refine classic_limit_new classic_limit_refine stack "
                               "recipe combine density gamma slerp_t drop_seed dense_density dense_mode blocks compat normalize "
                               "strict strict_share allow_twice adaptive_known_over_chance adaptive_refine_energy "
                               "adaptive_share_floor adaptive_share_ceiling adaptive_share_over_mean adaptive_new_over_mean "
                               "adaptive_limit_new adaptive_limit_refine",
    "Wan22StabilityMeter": "dit experts on_volatile stable_below volatile_above top_k",
    "Wan22Quantize": "model format activations experts more unsampled plan scales search int8_scaling kept_dtype rounding suffix "
                     "gguf_setting imatrix_high imatrix_low calibration",
    "Wan22SaveModel": "job title version name custom_name folder subfolder on_exists metadata lora_names plan_only device order "
                      "after_save",
    "Wan22LoadSaved": "files expert format activations label",
    "Wan22LoraList": "loras missing_half stack",
    "Wan22ImportLoraStack": "lora_stack side missing_half stack",
    "Wan22MergeCheckpoints": "a b method strength_high strength_low density drop_seed blocks c",
    "Wan22RecipeLoad": "recipe text text_low without search_hashes dit",
    "Wan22RecipeSave": "recipe name on_exists hashes dit",
    "Wan22LoraAnalysis": "dit experts",
    "Wan22MergePreview": "dit expert saved_as cache_gb approximate device model plan job activations",
    "Wan22SplitStep": "steps shift task boundary scheduler dit model sigmas",
    "Wan22LoraConvert": "lora lora_low to halves name on_exists on_refused",
    "Wan22LoraMerge": "stack global_factor method rank energy dtype name on_exists on_refused",
    "Wan22LoraExtract": "tuned base rank energy layers vectors dtype name on_exists seed",
    "Wan22LoraGated": "dit dtype name on_exists",
    "Wan22PrecisionPlan": "dit source preset hardware budget_gb card minimum_fast format gguf_high gguf_low "
                          "gguf_nvfp4_max_bitdepth use_fp8 plan_file keep_edge_blocks kept_dtype exclude include min_ffn_fp8 "
                          "min_ffn2_16bit sensitivity_high sensitivity_low sensitivity_threshold sensitivity_action "
                          "full_precision_high full_precision_low full_precision_layers cross_attn_qkvo cross_attn_kv "
                          "self_attn_qkvo ffn_up ffn_down promote promote_below title save_as container gguf_format calibration "
                          "full_precision_measured allow_other_base",
    "Wan22InputScales": "dit source summary_high summary_low percentile multiplier file_high file_low amax share",
    "Wan22Inspect": "file files",
    "Wan22PromptList": "file text negative preset width height frames steps cfg seed limit first skip_done session experts "
                       "image_folder pair on_missing_image images",
    "Wan22Calibrate": "session mode layers keep tokens stop_when_settled settled_runs settled_rise allow_other_base model_high "
                      "model_low",
    "Wan22CalibrationSummary": "session log_high log_low percentile multiplier cv_threshold plot write_files allow_other_base "
                               "calibration after dit",
    "Wan22Sensitivity": "dit calibration formats experts margin allow_other_base after",
}
CONTROLS = {"fixed", "control_after_generate"}     # the page's own widget behind a seed: no input of a node
OUTPUTS = {
    "Wan22LoadDualDiT": "W22_DIT STRING",
    "Wan22LoraPair": "W22_LORA_STACK",
    "Wan22ActionMasterInject": "W22_DIT W22_RECIPE STRING",
    "Wan22StabilityMeter": "W22_DIT FLOAT FLOAT STRING IMAGE STRING",
    "Wan22Quantize": "W22_JOB STRING",
    "Wan22SaveModel": "W22_FILE STRING STRING STRING STRING",
    "Wan22LoadSaved": "MODEL",
    "Wan22LoraList": "W22_LORA_STACK",
    "Wan22ImportLoraStack": "W22_LORA_STACK",
    "Wan22MergeCheckpoints": "W22_DIT STRING",
    "Wan22RecipeLoad": "W22_RECIPE STRING",
    "Wan22RecipeSave": "STRING STRING",
    "Wan22LoraAnalysis": "IMAGE STRING W22_DIT",
    "Wan22MergePreview": "MODEL STRING",
    "Wan22SplitStep": "INT STRING",
    "Wan22LoraConvert": "STRING STRING STRING",
    "Wan22LoraMerge": "STRING STRING STRING",
    "Wan22LoraExtract": "STRING STRING STRING",
    "Wan22LoraGated": "STRING STRING",
    "Wan22PrecisionPlan": "W22_PLAN STRING",
    "Wan22InputScales": "W22_SCALES STRING",
    "Wan22Inspect": "STRING STRING",
    "Wan22PromptList": "STRING STRING INT INT INT INT INT FLOAT IMAGE STRING",
    "Wan22Calibrate": "MODEL MODEL W22_CALIB STRING",
    "Wan22CalibrationSummary": "W22_SCALES STRING IMAGE W22_CALIB STRING",
    "Wan22Sensitivity": "W22_CALIB STRING STRING",
}


def ours(comfy) -> dict:
    return {name: info for name, info in comfy.get("/object_info").items() if info["python_module"].endswith("wan22-master")}


def test_the_server_lists_exactly_our_nodes_with_the_ids_that_workflows_hold(comfy):
    listed = ours(comfy)
    inputs = {name: [*info["input_order"]["required"], *info["input_order"].get("optional", [])] for name, info in listed.items()}
    assert {name: " ".join(keys) for name, keys in inputs.items()} == INPUTS
    assert {name: " ".join(info["output"]) for name, info in listed.items()} == OUTPUTS


@pytest.mark.parametrize("example", sorted((PACK / "example_workflows").glob("*.json")), ids=lambda path: path.stem)
def test_an_example_holds_exactly_the_inputs_of_today(example):
    nodes = [node for node in json.loads(example.read_text(encoding="utf-8"))["nodes"] if node["type"] in INPUTS]
    assert nodes and all({each["name"] for each in node["inputs"]} == set(INPUTS[node["type"]].split()) for node in nodes)
    for node in nodes:
        widgets = [each["name"] for each in node["inputs"] if "widget" in each]
        named, values = list(node.get("widgets_values_named", {})), node.get("widgets_values", [])
        assert [name for name in named if name not in CONTROLS] == widgets and len(values) == len(named)


def test_what_grew_on_a_node_is_optional_so_that_a_workflow_of_before_still_runs(comfy):
    listed = ours(comfy)
    grown = {"Wan22Quantize": 6, "Wan22SaveModel": 12, "Wan22LoadSaved": 3, "Wan22MergePreview": 7, "Wan22PrecisionPlan": 35}
    for name, before in grown.items():
        optional = listed[name]["input_order"]["optional"]
        assert set(INPUTS[name].split()[before:]) <= set(optional), name


def test_every_input_and_output_has_a_tooltip_and_every_node_words_to_find_it_by(comfy):
    for name, info in ours(comfy).items():
        inputs = {**info["input"]["required"], **info["input"].get("optional", {})}
        assert [key for key, spec in inputs.items() if not spec[1].get("tooltip")] == [], name
        assert all(info["output_tooltips"]) and len(info["output_tooltips"]) == len(info["output"]), name
        assert info["description"] and len(info["search_aliases"]) > 3, name
        assert re.fullmatch(r"Wan 2\.2 Master/[1-6] (load|merge|calibrate|quantize|save|LoRA tools)", info["category"]), name


def test_formats_of_gguf_files_are_offered_after_those_of_safetensors_and_a_default_never_moves(comfy):
    listed = ours(comfy)
    offered = {(name, key): listed[name]["input"]["required"][key][1] for name, key in (
        ("Wan22Quantize", "format"), ("Wan22LoadSaved", "format"), ("Wan22MergePreview", "saved_as"))}
    for place, widget in offered.items():
        kinds = [option in MIXES for option in widget["options"]]
        assert kinds == sorted(kinds) and any(kinds) and not all(kinds), place
    assert [widget["default"] for widget in offered.values()] == ["float8_e4m3fn", "any", "bf16"]
    assert listed["Wan22Quantize"]["input"]["optional"]["gguf_setting"][1]["default"] == "best"


def test_models_are_offered_and_the_first_high_noise_expert_is_the_default(comfy):
    options = ours(comfy)["Wan22LoadDualDiT"]["input"]["required"]["high_noise"][1]
    assert options["default"] == "wan2.2_t2v_high_noise_14B_fp16.safetensors"
    assert options["options"][-1] == "(none)"


def test_save_offers_the_folder_people_expect_first_and_names_no_home(comfy):
    options = ours(comfy)["Wan22SaveModel"]["input"]["required"]["folder"][1]
    assert options["default"] == options["options"][0] == "diffusion_models"
    assert "unet" in options["options"] and not any(str(comfy.base) in option for option in options["options"])


def test_scripts_are_served_once_each(comfy):
    served = [path for path in comfy.get("/extensions") if "wan22-master" in path]
    assert sorted(path.rpartition("/")[2] for path in served) == sorted(path.name for path in (PACK / "web").glob("*.js"))
