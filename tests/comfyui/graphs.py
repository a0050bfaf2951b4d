"""Graphs in API form, as a person would wire them; node ids stay the same in all of them."""
HIGH, LOW = "wan2.2_t2v_high_noise_14B_fp16.safetensors", "wan2.2_t2v_low_noise_14B_fp16.safetensors"
SINGLE = "wan2.2_ti2v_5B_fp16.safetensors"
LIGHTNING = "wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors"
STYLE = "my_style_high_noise.safetensors"
SINGLE_LORA = "my_5B_style.safetensors"
CLIP, VAE = "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "wan_2.1_vae.safetensors"
LOAD, LORA_1, LORA_2, INJECT, METER, QUANTIZE, SAVE = "1", "2", "3", "4", "5", "6", "7"
CLASSIC = {"classic_novelty": 1.5, "classic_sensitivity_new": 0.4, "classic_sensitivity_refine": 1.8, "classic_limit_new": 0.08,
           "classic_limit_refine": 0.05}


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def lora_pair(high: str, strength: float = 1.0, **changes) -> dict:
    """LoRA Pair with its defaults."""
    defaults = {"lora_high": high, "lora_low": "(auto pair)", "strength_high": strength, "strength_low": strength,
                "enabled_high": True, "enabled_low": True, "method": "(of the pass)"}
    return node("Wan22LoraPair", **(defaults | changes))


def quantize(dit: list, format_name: str = "float8_e4m3fn", **changes) -> dict:
    """Quantize with its defaults."""
    defaults = {"model": dit, "format": format_name, "activations": "fast, uncalibrated", "experts": "all"}
    return node("Wan22Quantize", **(defaults | changes))


def precision_plan(dit: list, source: str = "preset", **changes) -> dict:
    """Precision Plan with its defaults, for a card that does not depend on this machine."""
    nothing = dict.fromkeys(("gguf_high", "gguf_low", "plan_file", "sensitivity_high", "sensitivity_low", "full_precision_high",
                             "full_precision_low"), "(none)")
    switches = dict.fromkeys(("keep_edge_blocks", "min_ffn_fp8", "min_ffn2_16bit", "cross_attn_qkvo", "cross_attn_kv",
                              "self_attn_qkvo", "ffn_up", "ffn_down", "promote"), False)
    texts = dict.fromkeys(("exclude", "include", "full_precision_layers", "title", "save_as"), "")
    return node("Wan22PrecisionPlan", **({
        "dit": dit, "source": source, "preset": "balanced", "hardware": "blackwell", "budget_gb": 11.0, "card": "rtx50",
        "minimum_fast": 0.0, "format": "nvfp4", "gguf_nvfp4_max_bitdepth": 5, "use_fp8": True, "kept_dtype": "auto",
        "sensitivity_threshold": 0.1, "sensitivity_action": "keep", "promote_below": 1.0,
        **nothing, **switches, **texts} | changes))


def input_scales(dit: list, source: str = "scales summary", **changes) -> dict:
    """Input Scales with its defaults."""
    nothing = dict.fromkeys(("summary_high", "summary_low", "file_high", "file_low"), "(none)")
    return node("Wan22InputScales", **({"dit": dit, "source": source, "percentile": 100.0, "multiplier": 2.0, "amax": 100.0,
                                        "share": True, **nothing} | changes))


def save(job: list, **changes) -> dict:
    """Save Model with its defaults."""
    return node("Wan22SaveModel", **({
        "job": job, "title": "my_mix", "version": "v1", "name": "comfy",
        "custom_name": "%title%_%version%_%task%_%expert%_%format%", "folder": "diffusion_models", "subfolder": "",
        "on_exists": "number", "metadata": "publish", "lora_names": True, "plan_only": False, "device": "auto"} | changes))


def main_job(**changes) -> dict:
    """Load, two LoRA Pairs, Inject, Stability Meter, Quantize FP8, Save. changes: of Save's inputs."""
    return {
        LOAD: node("Wan22LoadDualDiT", high_noise=HIGH, low_noise="(auto pair)", allow_quantized_source=False),
        LORA_1: lora_pair(LIGHTNING),
        LORA_2: lora_pair(STYLE, 0.8, stack=[LORA_1, 0]),
        INJECT: node("Wan22ActionMasterInject", dit=[LOAD, 0], stack=[LORA_2, 0], method="auto", global_factor=1.0, pass_name="",
                     gate_distillation=False, on_mismatch="error", **CLASSIC),
        METER: node("Wan22StabilityMeter", dit=[INJECT, 0], experts="all", on_volatile="report", stable_below=0.015,
                    volatile_above=0.03, top_k=12),
        QUANTIZE: quantize([METER, 0]),
        SAVE: save([QUANTIZE, 0], **changes),
    }


def single_job(model: str = SINGLE, lora: str = SINGLE_LORA, **changes) -> dict:
    """A model that is one file: FP8 and BF16 from one reading."""
    graph = main_job(**changes)
    graph[LOAD]["inputs"]["high_noise"] = model
    graph[LORA_1] = lora_pair(lora)
    graph[INJECT]["inputs"]["stack"] = [LORA_1, 0]
    graph["8"] = quantize([METER, 0], "bf16")
    graph[QUANTIZE]["inputs"]["more"] = ["8", 0]
    del graph[LORA_2]
    return graph


def sampling(high: dict, low: dict) -> dict:
    """Two KSamplerAdvanced over two models, given as loader nodes; report of the latent in "30", of the high model in "31"."""
    common = {"noise_seed": 42, "steps": 4, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "positive": ["24", 0],
              "negative": ["24", 0]}
    return {
        "20": high, "21": low,
        "22": node("ModelSamplingSD3", model=["20", 0], shift=5.0), "23": node("ModelSamplingSD3", model=["21", 0], shift=5.0),
        "24": node("Wan22TestConditioning", seed=1),
        "25": node("EmptyHunyuanLatentVideo", width=64, height=64, length=5, batch_size=1),
        "26": node("KSamplerAdvanced", model=["22", 0], add_noise="enable", latent_image=["25", 0], start_at_step=0,
                   end_at_step=2, return_with_leftover_noise="enable", **common),
        "27": node("KSamplerAdvanced", model=["23", 0], add_noise="disable", latent_image=["26", 0], start_at_step=2,
                   end_at_step=10000, return_with_leftover_noise="disable", **common),
        "30": node("Wan22TestReport", latent=["27", 0]), "31": node("Wan22TestReport", model=["20", 0]),
    }


def plain_loader(name: str) -> dict:
    """ComfyUI's own loader: needs nothing of this pack."""
    return node("UNETLoader", unet_name=name, weight_dtype="default")


def text_to_video(high: dict, low: dict) -> dict:
    """Wan 2.2 T2V as ComfyUI's own nodes do it, four steps, over two models given as loader nodes."""
    graph = sampling(high, low) | {
        "32": node("CLIPLoader", clip_name=CLIP, type="wan", device="default"), "33": node("VAELoader", vae_name=VAE),
        "24": node("CLIPTextEncode", clip=["32", 0], text="a red fox runs through fresh snow, low sun, handheld camera"),
        "34": node("CLIPTextEncode", clip=["32", 0], text=""),
        "25": node("EmptyHunyuanLatentVideo", width=832, height=480, length=81, batch_size=1),
        "35": node("VAEDecode", samples=["27", 0], vae=["33", 0]),
        "36": node("CreateVideo", images=["35", 0], fps=16.0),
        "37": node("SaveVideo", video=["36", 0], filename_prefix="video/my_mix", format="auto", codec="auto"),
    }
    for sampler in ("26", "27"):
        graph[sampler]["inputs"]["negative"] = ["34", 0]
    return {place: each for place, each in graph.items() if place not in {"30", "31"}}


PROMPTS, CALIBRATE, SUMMARY, SENSITIVITY, PREVIEW_HIGH, PREVIEW_LOW, SPLIT, PLAN = "40", "41", "42", "43", "20", "21", "44", "45"


def preview(role: str) -> dict:
    """Merge Preview with its defaults."""
    return node("Wan22MergePreview", dit=[INJECT, 0], expert=role, saved_as="bf16", cache_gb=4.0, approximate=False, device="auto")


def prompt_list(**changes) -> dict:
    """Prompt List with its defaults: the built-in prompts, at low cost."""
    return node("Wan22PromptList", **({
        "file": "built-in: 32 varied", "text": "", "negative": "", "preset": "low cost", "width": 832, "height": 480, "frames": 81,
        "steps": 20, "cfg": 3.5, "seed": 0, "limit": 0, "first": 1, "skip_done": False, "session": "calib_01",
        "experts": "both", "image_folder": "", "pair": "auto", "on_missing_image": "error"} | changes))


def calibrate(high: list, low: list, **changes) -> dict:
    """Calibrate with its defaults."""
    return node("Wan22Calibrate", **({
        "model_high": high, "model_low": low, "session": "calib_01", "mode": "append", "layers": "all linears", "keep": "stats",
        "tokens": 128, "stop_when_settled": False, "settled_runs": 4, "settled_rise": 0.01, "allow_other_base": False} | changes))


def calibrated_job() -> dict:
    """Prompts sampled with the merge, which is then saved by a plan that rests on what they told."""
    prompts = {name: [PROMPTS, number] for number, name in enumerate(
        ("prompt", "negative", "width", "height", "frames", "seed", "steps", "cfg"))}
    sampler = {"noise_seed": prompts["seed"], "steps": prompts["steps"], "cfg": prompts["cfg"], "sampler_name": "euler",
               "scheduler": "simple", "positive": ["24", 0], "negative": ["34", 0]}
    graph = main_job()
    graph[INJECT]["inputs"]["stack"] = [LORA_1, 0]
    graph |= {
        PREVIEW_HIGH: preview("high_noise"), PREVIEW_LOW: preview("low_noise"),
        PROMPTS: prompt_list(limit=8),
        CALIBRATE: calibrate([PREVIEW_HIGH, 0], [PREVIEW_LOW, 0]),
        "22": node("ModelSamplingSD3", model=[CALIBRATE, 0], shift=5.0),
        "23": node("ModelSamplingSD3", model=[CALIBRATE, 1], shift=5.0),
        "32": node("CLIPLoader", clip_name=CLIP, type="wan", device="default"),
        "24": node("CLIPTextEncode", clip=["32", 0], text=prompts["prompt"]),
        "34": node("CLIPTextEncode", clip=["32", 0], text=prompts["negative"]),
        SPLIT: node("Wan22SplitStep", steps=prompts["steps"], shift=5.0, task="auto", boundary=0.875, scheduler="simple",
                    dit=[INJECT, 0]),
        "25": node("EmptyHunyuanLatentVideo", width=prompts["width"], height=prompts["height"], length=prompts["frames"],
                   batch_size=1),
        "26": node("KSamplerAdvanced", model=["22", 0], add_noise="enable", latent_image=["25", 0], start_at_step=0,
                   end_at_step=[SPLIT, 0], return_with_leftover_noise="enable", **sampler),
        "27": node("KSamplerAdvanced", model=["23", 0], add_noise="disable", latent_image=["26", 0], start_at_step=[SPLIT, 0],
                   end_at_step=10000, return_with_leftover_noise="disable", **sampler),
        SUMMARY: node("Wan22CalibrationSummary", calibration=[CALIBRATE, 2], after=["27", 0], dit=[INJECT, 0],
                      session="(connected)", log_high="(none)", log_low="(none)", percentile=100.0, multiplier=2.0,
                      cv_threshold=0.11, plot="all", write_files=True, allow_other_base=False),
        SENSITIVITY: node("Wan22Sensitivity", dit=[INJECT, 0], calibration=[SUMMARY, 3], formats="this card's", experts="all",
                          margin=2.0, allow_other_base=False),
        PLAN: precision_plan([INJECT, 0], "size budget", calibration=[SENSITIVITY, 0]),
        QUANTIZE: quantize([INJECT, 0], "nvfp4", plan=[PLAN, 0], scales=[SUMMARY, 0], calibration=[SENSITIVITY, 0]),
    }
    return {place: each for place, each in graph.items() if place not in {LORA_2, METER}}


def without_encoder(graph: dict) -> dict:
    """The same with conditioning made of the texts alone, and small."""
    found = {place: {**each, "inputs": dict(each["inputs"])} for place, each in graph.items() if place != "32"}
    for place in ("24", "34"):
        found[place] = node("Wan22TestText", text=graph[place]["inputs"]["text"])
    found[PLAN]["inputs"]["budget_gb"] = 0.03
    found[PROMPTS]["inputs"] |= {"preset": "as given", "width": 64, "height": 64, "frames": 5, "steps": 4, "limit": 2}
    return found
