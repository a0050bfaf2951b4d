"""The split step against ComfyUI's own sigmas, by our node and by counting; see in_process.py. Prints one JSON line."""
import json

from in_process import SIZES, ModelSamplingSD3, comfy, error_of, folder, sys, torch, write_model
from wan22_master.engine.boundary import high_share, split_step
from wan22_master.nodes.handles import Dit
from wan22_master.nodes.split_step import CUSTOM, FORMULA, I2V, T2V, Wan22SplitStep

FOUND: dict = {"exact": [], "formula": [], "margin": []}
BOUNDARIES = {I2V: 0.9, T2V: 0.875}


def node(steps: int, shift: float, task: str, scheduler: str = FORMULA, **more) -> int:
    return Wan22SplitStep.execute(steps, shift, task, 0.5, scheduler, **more).args[0]


def counted(sigmas: torch.Tensor, boundary: float) -> int:
    """Steps whose timestep Wan 2.2 would give to the high-noise expert: timestep >= boundary * 1000."""
    return int((sigmas[:-1].double() * 1000 >= boundary * 1000 * (1 - 1e-7)).sum())   # sigmas are float32


write_model(folder / "t2v.safetensors", SIZES["bf16"], "t2v")
base = comfy.sd.load_diffusion_model(str(folder / "t2v.safetensors"))
for shift in (1.0, 3.0, 5.0, 8.0, 12.0):
    model = ModelSamplingSD3().patch(base, shift)[0]
    sampling = model.get_model_object("model_sampling")
    for steps in range(1, 51):
        for task, boundary in BOUNDARIES.items():
            for scheduler in comfy.samplers.SCHEDULER_NAMES if steps in (2, 4, 8, 20, 30) else ("simple",):
                sigmas = comfy.samplers.calculate_sigmas(sampling, scheduler, steps)
                if len(sigmas) < 2 or bool((sigmas[1:] > sigmas[:-1]).any()):
                    continue
                want = counted(sigmas, boundary)
                got = [node(steps, shift, task, scheduler), node(steps, 99.0, task, scheduler, model=model),
                       node(7, 99.0, task, sigmas=sigmas)]
                FOUND["exact"] += [[scheduler, steps, shift, boundary, want, got]] if got != [want] * 3 else []
                if scheduler == "simple":
                    edge = abs((steps * high_share(boundary, shift) + 0.5) % 1 - 0.5) / steps
                    if split_step(steps, shift, boundary) != want:
                        FOUND["formula"].append([steps, shift, boundary, edge])
                    FOUND["margin"].append(edge)
dit = Dit((("model", str(folder / "t2v.safetensors")),), "t2v")
FOUND["auto"] = [node(4, 5.0, "auto", dit=dit), node(4, 99.0, "auto", model=ModelSamplingSD3().patch(base, 5.0)[0])]
FOUND["custom"] = node(4, 5.0, CUSTOM)
FOUND["nothing"] = error_of(node, 4, 5.0, "auto")
FOUND["text"] = Wan22SplitStep.execute(4, 5.0, I2V, 0.5, FORMULA).args[1]
FOUND["alone"] = Wan22SplitStep.execute(1, 5.0, I2V, 0.5, FORMULA).args[1]
sys.stdout.write(json.dumps(FOUND) + "\n")
