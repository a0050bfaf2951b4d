"""What the probe of Calibrate works with: the node as a server calls it, tiny models, samplers, and an oracle on every linear."""
import json
import sys
import types

from gguf_probe_models import GGUF_NODES, installed, random, weights  # first of all: it finds ComfyUI
from in_process import (
    LAYOUTS,
    ModelSamplingSD3,
    QuantizedTensor,
    folder,
    folder_paths,
    load_file,
    plan_recipe,
    recipe,
    run,
    save_file,
    torch,
)
from wan22_master.engine.calibration.gather import gather
from wan22_master.engine.calibration.session import Session
from wan22_master.nodes.calibrate import Wan22Calibrate, io

import nodes

SAID: list[str] = []
DEFAULTS = {"mode": "append", "layers": "all linears", "keep": "stats", "tokens": 8, "stop_when_settled": False, "settled_runs": 2,
            "settled_rise": 0.01, "allow_other_base": False}
LATENTS = {"t2v": (16, 8, 8), "i2v": (16, 8, 8), "5B": (48, 4, 4)}


def calibrated(session: str, high=None, low=None, **changes):
    """What the node gives: models, handle, info."""
    node = Wan22Calibrate.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "7"}})
    return node.EXECUTE_NORMALIZED(session=session, model_high=high, model_low=low, **(DEFAULTS | changes)).args


def opened(session: str) -> Session:
    return Session.open(folder / "user" / "default" / "wan22_master" / "calibration" / session)


def conditioning(kind: str, seed: int) -> list:
    """Positive and negative; for I2V with the image that its model is concatenated with."""
    more = {"concat_latent_image": random(1, 16, 2, 8, 8, seed=seed + 4), "concat_mask": torch.ones(1, 1, 2, 8, 8)}
    return [[[random(1, 77, 4096, seed=seed + number), more if kind == "i2v" else {}]] for number in (1, 2)]


def sample(model, kind: str = "t2v", *, steps=(0, 4, 4), cfg=2.0, sampler="euler", seed=42, latent=None, text=None) -> torch.Tensor:
    """A sampler of the graph. steps: first, last, all; a latent that is given is gone on with, without new noise."""
    channels, height, width = LATENTS[kind]
    shifted = ModelSamplingSD3().patch(model, 5.0)[0]
    begun = latent is not None
    given = {"samples": latent if begun else torch.zeros(1, channels, 2, height, width)}
    first, last, total = steps
    return nodes.KSamplerAdvanced().sample(shifted, "disable" if begun else "enable", 0 if begun else seed, total, cfg, sampler,
                                           "simple", *conditioning(kind, seed if text is None else text), given, first, last,
                                           "enable" if last < total else "disable")[0]["samples"].clone()


class Oracle:
    """A forward hook on everything that has in_features: layer -> (part, largest |x|) of each chunk of each call."""

    def __init__(self, model):
        self.network, self.seen, self.parts = model.model.diffusion_model, {}, []
        self.hooks = [module.register_forward_hook(self._hook(name)) for name, module in self.network.named_modules()
                      if hasattr(module, "in_features")]
        self._apply, model.model.apply_model = model.model.apply_model, self._told(model.model.apply_model)
        self.model = model.model

    def _hook(self, name):
        def after(module, args, out):
            chunks = args[0].chunk(len(self.parts))
            self.seen.setdefault(name, []).extend([part, float(each.float().abs().max())]
                                                  for part, each in zip(self.parts, chunks, strict=True))
        return after

    def _told(self, apply):
        def call(*args, **kwargs):
            self.parts = [("cond", "uncond")[each] for each in kwargs["transformer_options"]["cond_or_uncond"]]
            return apply(*args, **kwargs)
        return call

    def __enter__(self):
        return self.seen

    def __exit__(self, *error):
        del self.model.apply_model
        for hook in self.hooks:
            hook.remove()


def hooks_left(model) -> int:
    return sum(len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.model.diffusion_model.modules())


def linears_of(path) -> list[str]:
    """By the keys of the file itself."""
    return [key.removesuffix(".weight") for key, value in load_file(path).items() if key.endswith(".weight") and value.ndim == 2]


def against(session: str, role: str, seen: dict, file) -> dict:
    """What a session holds of one run, beside what the oracle saw."""
    found = gather(opened(session), role)
    [run] = opened(session).runs(role)
    parts = [call.part for _, _, call in found.calls]
    have = {layer: [[parts[place], value] for place, value in
                    zip(found.places(layer).tolist(), found.amax(layer).tolist(), strict=True)] for layer in found.layers()}
    wrong = [layer for layer, calls in have.items() if calls != seen.get(layer)]
    return {"wrong": wrong, "layers": len(found.layers()), "names": sorted(set(found.layers()) ^ set(linears_of(file))),
            "finished": run.finished, "steps": list(run.steps), "points": len(found.points), "oracle": len(seen),
            "calls": [sum(step == each for _, each, _ in found.calls) for step in run.steps], "parts": sorted(set(parts)),
            "sigmas": [call.sigma for _, _, call in found.calls], "tokens": len(found.tokens("blocks.1.ffn.0"))}


def write(kind: str, name: str, seed: int = 1) -> str:
    path = folder / "out" / f"{name}.safetensors"
    save_file(weights(kind, seed), path)
    return path.name


def quantized(name: str, form: str) -> str:
    """The T2V file with its block linears coded by comfy-kitchen."""
    held, path = {}, folder / "out" / f"{name}.safetensors"
    for key, weight in load_file(folder / "out" / "t2v_high_noise.safetensors").items():
        if key.startswith("blocks.") and weight.ndim == 2 and key.endswith(".weight"):
            options = {"per_channel": True} if form == "int8_tensorwise" else {"scale": "recalculate"}
            held |= QuantizedTensor.from_float(weight.float(), LAYOUTS[form], **options).state_dict(key)
            held[f"{key.removesuffix('weight')}comfy_quant"] = torch.tensor(list(json.dumps({"format": form}).encode()),
                                                                            dtype=torch.uint8)
        else:
            held[key] = weight
    save_file({key: value.contiguous() for key, value in held.items()}, path)
    return path.name


def baked_as(name: str) -> str:
    wish = recipe({"model": str(folder / "out" / "t2v_high_noise.safetensors")}, [], outputs=[{"format": name}])
    with plan_recipe(wish, folder / "reports") as plan:
        path = run(plan, reports=folder / "reports")["experts"][0]["outputs"][0]["path"]
    return path.rpartition("/")[2]


def prepare() -> None:
    """Folders of models and of the user, ComfyUI-GGUF where it is installed, and a place for what the node says."""
    sys.modules["server"].PromptServer.instance = types.SimpleNamespace(send_progress_text=lambda text, node: SAID.append(text),
                                                                        prompt_queue=None)
    (folder / "out").mkdir(parents=True, exist_ok=True)
    folder_paths.set_user_directory(str(folder / "user"))
    if GGUF_NODES.is_dir():
        installed()
    else:
        folder_paths.add_model_folder_path("diffusion_models", str(folder / "out"))


def queue_is(name: str = "", graph: dict | None = None) -> None:
    """The graph that ComfyUI's queue runs; none without a name."""
    running = types.SimpleNamespace(get_current_queue_volatile=lambda: ([(0, "other", {}), (1, name, graph)], []))
    sys.modules["server"].PromptServer.instance.prompt_queue = running if name else None
