"""Calibrate on tiny models in ComfyUI's own sampling, against a plain forward hook on every linear; see in_process.py.

Prints one JSON line.
"""
import json
import sys
import types

from calibrate_probe_tools import (  # first of all: it finds ComfyUI
    SAID,
    Oracle,
    against,
    baked_as,
    calibrated,
    conditioning,
    hooks_left,
    opened,
    prepare,
    quantized,
    queue_is,
    sample,
    write,
)
from comfy_execution.utils import CurrentNodeContext
from gguf_probe_models import GGUF_NODES, load
from in_process import ModelSamplingSD3, baked, comfy, error_of, folder, mm, plan_recipe, recipe, torch, write_lora
from wan22_master.engine.calibration import log
from wan22_master.engine.calibration.compare import compare
from wan22_master.engine.calibration.gather import gather
from wan22_master.engine.calibration.prompt_list import Entry
from wan22_master.engine.preview import Preview, settle
from wan22_master.engine.synthetic import Sizes
from wan22_master.nodes import prompt_register
from wan22_master.nodes.calibration_subject import subject_of_model
from wan22_master.nodes.preview_adapter import PreviewJob, put_on

import nodes

FOUND: dict = {}


def pair() -> None:
    """Two experts and two samplers, as a person wires them, cond and uncond in one batch."""
    files = [write("t2v", f"t2v_{role}", seed) for role, seed in (("high_noise", 1), ("low_noise", 2))]
    high, low = (load(file) for file in files)
    plain = sample(low, steps=(2, 4, 4), latent=sample(high, steps=(0, 2, 4)))
    marked = calibrated("pair", high, low, keep="stats and log")
    with Oracle(high) as one, Oracle(low) as other:
        done = sample(marked[1], steps=(2, 4, 4), latent=sample(marked[0], steps=(0, 2, 4)))
    FOUND["pair"] = {"same": torch.equal(done, plain), "hooks": [hooks_left(high), hooks_left(low)], "info": marked[3],
                     "high": against("pair", "high_noise", one, folder / "out" / files[0]),
                     "low": against("pair", "low_noise", other, folder / "out" / files[1]), "said": SAID[:]}
    lines = log.read(folder / "user/default/wan22_master/calibration/pair/high_noise.log")
    passes = {layer: [max(value[1] for value in values[at:at + 2]) for at in range(0, len(values), 2)]
              for layer, values in one.items()}
    FOUND["log"] = [len(lines.amax), [layer for layer, values in lines.amax.items()
                                      if any(abs(have - want) > 1e-6 for have, want in zip(values, passes[layer], strict=True))]]


def others() -> None:
    """A lone model of each kind and storage, one of Heun's two calls a step."""
    q8 = baked_as("Q8_0") if GGUF_NODES.is_dir() else None
    for name, kind, file, options in (("i2v", "i2v", write("i2v", "i2v_high", 3), {"cfg": 1.0}),
                                      ("5B", "5B", write("5B", "small"), {"sampler": "heun"}),
                                      ("heun left over", "t2v", "t2v_high_noise.safetensors",
                                       {"sampler": "heun", "steps": (0, 2, 4)}),
                                      ("fp8", "t2v", quantized("fp8", "float8_e4m3fn"), {}),
                                      ("int8", "t2v", quantized("int8", "int8_tensorwise"), {}),
                                      *([("gguf", "t2v", q8, {})] if q8 else [])):
        model = load(file)
        plain, session = sample(model, kind, **options), name.replace(" ", "_")
        marked = calibrated(session, model)
        with Oracle(model) as seen:
            same = torch.equal(sample(marked[0], kind, **options), plain)
        [run] = opened(session).runs()
        lone = write("t2v", "again") if q8 == file else file
        FOUND[name] = {"same": same, "hooks": hooks_left(model), "role": run.role, "stored": run.subject.stored_as,
                       "said": SAID[-1], "facts": run.facts.to_json(), "info": marked[3],
                       **against(session, run.role, seen, folder / "out" / lone)}


def stops() -> None:
    """An error in the middle of the third step's pass, and ComfyUI's interrupt from there and from the sampler's report."""
    model = load("t2v_high_noise.safetensors")
    plain = sample(model)
    for name, error in (("error", RuntimeError), ("interrupt", mm.InterruptProcessingException)):
        count, during = [0], []

        def stop(module, args, error=error, count=count, during=during):
            count[0] += 1
            if count[0] == 3:
                during.append(hooks_left(model))
                raise error("stop")

        marked = calibrated(name, model)
        thrown = model.model.diffusion_model.head.register_forward_pre_hook(stop)
        try:
            sample(marked[0])
            raised = "none"
        except BaseException as caught:  # noqa: BLE001 - an interrupt is no Exception
            raised = type(caught).__name__
        thrown.remove()
        [run] = opened(name).runs()
        FOUND[name] = {"raised": raised, "during": during, "hooks": hooks_left(model), "steps": list(run.steps),
                       "finished": run.finished, "again": torch.equal(sample(marked[0]), plain),
                       "runs": [[each.finished, len(each.steps)] for each in opened(name).runs()]}
    first = model.model.diffusion_model.blocks[0].register_forward_pre_hook(lambda module, args: 1 / 0)
    FOUND["before a step"] = [error_of(sample, calibrated("none", model)[0]), len(opened("none").runs())]
    first.remove()


def text_of_its_own() -> None:
    """A node that gives the second block another text."""
    model = load("t2v_high_noise.safetensors")

    def other(args, rest):
        return rest["original_block"]({**args, "txt": args["txt"] * 1.5})

    changed = model.clone()
    changed.set_model_patch_replace(other, "dit", "double_block", 1)
    marked = calibrated("text", changed)
    with Oracle(model) as seen:
        sample(marked[0])
    found = against("text", "high_noise", seen, folder / "out" / "t2v_high_noise.safetensors")
    FOUND["text"] = {**found, "said": SAID[-1], "same": torch.equal(sample(marked[0]), sample(changed))}


def blocks_alone() -> None:
    marked = calibrated("blocks", load("t2v_high_noise.safetensors"), layers="linears of blocks", tokens=0)
    sample(marked[0])
    found = gather(opened("blocks"), "high_noise")
    FOUND["blocks"] = [len(found.layers()), all(layer.startswith("blocks.") for layer in found.layers()),
                       len(found.tokens("blocks.0.ffn.0"))]


def settled() -> None:
    """Four prompts, high for all of them first, as ComfyUI runs a list; nothing may rise by more than nine times."""
    high, low = load("t2v_high_noise.safetensors"), load("t2v_low_noise.safetensors")
    marked, start = calibrated("settled", high, low, stop_when_settled=True, settled_runs=2, settled_rise=9.0), len(SAID)
    latents = [sample(marked[0], steps=(0, 2, 4), text=seed, seed=seed) for seed in range(5)]
    done = {seed: sample(marked[1], steps=(2, 4, 4), text=seed, latent=latents[seed]) for seed in (4, 0, 1, 2, 3)}
    FOUND["settled"] = {"high": [bool(latent.any()) for latent in latents], "low": [bool(done[seed].any()) for seed in range(5)],
                        "runs": [len(opened("settled").runs(role)) for role in ("high_noise", "low_noise")],
                        "said": [line for line in SAID[start:] if "NOT SAMPLED" in line]}
    marked, start = calibrated("unsettled", high, stop_when_settled=True, settled_runs=2, settled_rise=0.0), len(SAID)
    for seed in range(4):                           # each text larger than the one before: something rises for ever
        grown = conditioning("t2v", seed)
        grown[0][0][0] *= 2.0 ** seed
        shifted = ModelSamplingSD3().patch(marked[0], 5.0)[0]
        nodes.KSampler().sample(shifted, seed, 1, 1.0, "euler", "simple", *grown, {"samples": torch.zeros(1, 16, 2, 8, 8)})
    FOUND["unsettled"] = [len(opened("unsettled").runs()), [line for line in SAID[start:] if "NOT SAMPLED" in line]]


def refusals() -> None:
    high, low, other = (load(file) for file in ("t2v_high_noise.safetensors", "t2v_low_noise.safetensors", "i2v_high.safetensors"))
    compiled = high.clone()
    compiled.model_options["torch_compile_kwargs"] = {}
    stranger = types.SimpleNamespace(model=types.SimpleNamespace(diffusion_model=torch.nn.Linear(1, 1), model_config=object()))
    sample(calibrated("taken", high)[0])
    FOUND["refused"] = {
        "nothing": error_of(calibrated, "x"), "stranger": error_of(calibrated, "x", stranger),
        "swapped": error_of(calibrated, "x", low, high), "compiled": error_of(calibrated, "x", compiled),
        "base": error_of(calibrated, "taken", other), "outside": error_of(calibrated, "../x", high),
        "empty": error_of(calibrated, " ", high), "lone": error_of(calibrated, "5B", high),
        "pair": error_of(calibrated, "taken", load("small.safetensors"))}
    late = calibrated("late", high)[0]
    late.model_options["torch_compile_kwargs"] = {}
    FOUND["refused"]["compiled behind"] = error_of(sample, late)
    allowed = calibrated("taken", other, allow_other_base=True)
    sample(allowed[0], "i2v", cfg=1.0)
    FOUND["allowed"] = [allowed[3], len(opened("taken").runs())]
    FOUND["restart"] = [calibrated("taken", high, mode="restart")[3], len(opened("taken").runs())]
    with_lora = nodes.LoraLoaderModelOnly()
    write_lora(folder / "out" / "lora.safetensors", Sizes(dim=256, ffn=512, blocks=2, rank=8), "native", "lora")
    sample(calibrated("taken", high)[0], cfg=1.0)
    FOUND["lora"] = calibrated("taken", with_lora.load_lora_model_only(high, "lora.safetensors", 0.5)[0])[3]


def prompts() -> None:
    """Runs of a Prompt List are known by their seed and size; the low-noise sampler's seed may be any, as it draws no noise."""
    high, low = load("t2v_high_noise.safetensors"), load("t2v_low_noise.safetensors")
    prompt_register.remember([Entry(place, f"prompt {place}", "bad", 64, 64, 5, 100 + place, 4, 2.0) for place in (1, 2, 3)], "1")
    marked, start = calibrated("prompts", high, low), len(SAID)
    with CurrentNodeContext("queue", "26", 1):
        latent = sample(marked[0], steps=(0, 2, 4), seed=102)
    with CurrentNodeContext("queue", "27", 1):
        sample(marked[1], steps=(2, 4, 4), latent=latent)
    runs = opened("prompts").runs()
    FOUND["prompts"] = [[run.facts.prompt for run in runs], len({run.facts.prompt_id for run in runs}), SAID[start:]]
    graph = {"1": {"inputs": {"text": "a fox"}}, "2": {"inputs": {"positive": ["1", 0], "negative": ["9", 0], "vae": ["8", 0]}},
             "9": {"inputs": {"text": "blurry"}}, "26": {"inputs": {"positive": ["2", 0], "negative": ["2", 1], "steps": 4}}}
    queue_is("queue 2", graph)
    marked = calibrated("texts", high)
    with CurrentNodeContext("queue 2", "26", 0):
        sample(marked[0], seed=5)
    sample(marked[0], seed=6)
    FOUND["texts"] = [[run.facts.prompt, run.facts.negative] for run in opened("texts").runs()]
    sample(marked[0], seed=6)
    FOUND["repeated"] = len(opened("texts").runs())
    queue_is()


def subjects() -> None:
    """A merge as a preview, and the file that it is saved as, are one subject."""
    base, lora = folder / "out" / "t2v_high_noise.safetensors", folder / "out" / "lora.safetensors"
    experts, passes = {"model": str(base)}, [{"name": "Pass 1", "loras": [{"files": {"model": str(lora)}}]}]
    with torch.inference_mode(False):
        plan = plan_recipe(recipe(experts, passes), folder / "reports")
        preview = Preview(plan, "model")
        settle(plan, "model", reports=folder / "reports")
        saved = baked(experts, passes)["model"]
    shown = subject_of_model(put_on(comfy.sd.load_diffusion_model(str(base)), PreviewJob(preview, None, "model")), "model_high")
    kept = subject_of_model(comfy.sd.load_diffusion_model(saved), "model_high")
    FOUND["subjects"] = [compare(shown, kept), shown.recipe == kept.recipe != "", [shown.stored_as, kept.stored_as]]
    if not GGUF_NODES.is_dir():
        return
    name = baked_as("Q8_0")
    graph = {"5": {"inputs": {"unet_name": name}}, "6": {"inputs": {"model": ["5", 0], "shift": 5.0}},
             "7": {"inputs": {"model_high": ["6", 0]}}}
    model = load(name)
    alone = subject_of_model(model, "model_high")
    queue_is("queue 3", graph)
    with CurrentNodeContext("queue 3", "7", 0):
        told = subject_of_model(model, "model_high")
    queue_is()
    FOUND["gguf subject"] = [told.base_name, told.stored_as, compare(told, subject_of_model(load(base.name), "model_high")),
                             compare(alone, alone), len(compare(alone, told)[0])]


prepare()
with torch.inference_mode():
    for check in (pair, others, stops, text_of_its_own, blocks_alone, settled, refusals, prompts, subjects):
        check()
sys.stdout.write(json.dumps(FOUND) + "\n")
