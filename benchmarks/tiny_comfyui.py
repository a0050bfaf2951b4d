"""The tiny pair inside ComfyUI, in this process: loaded, recorded by Calibrate, sampled with any weights.

Runs in ComfyUI's own Python. Calibrate is the pack's node between loader and sampler, and ComfyUI samples: euler, 10 steps of
shift 5, cfg 3, high_noise while sigma >= 0.875. `Pair.sample` takes the same steps for many prompts at once, in float32, with
whatever weights are put in, and rounds the inputs of layers as the card that is asked for would.
"""
import itertools
import sys
import types
from pathlib import Path

import harness
import torch
from tiny_trained import BOUNDARY, SHIFT
from tiny_videos import CHANNELS, FRAMES, SIDE, context_of, drawn

STEPS, CFG, MILLE = 10, 3.0, 1000                  # MILLE: sigma 1 is timestep 1000
ROLES = ("high_noise", "low_noise")
FIRST_NOISE = 10**7                                # of seeds, so that no noise is one that trained


def start(comfyui: str, folder: Path) -> None:
    """Make ComfyUI and the pack's nodes importable, on the CPU; sessions go into `folder`."""
    sys.path.insert(0, comfyui)
    sys.argv = sys.argv[:1]
    server, nodes = types.ModuleType("server"), types.ModuleType("wan22_master.nodes")
    instance = types.SimpleNamespace(send_progress_text=lambda *told: None, prompt_queue=None)
    server.PromptServer = types.SimpleNamespace(instance=instance)
    nodes.__path__ = [str(harness.ROOT / "nodes")]
    sys.modules |= {"server": server, "wan22_master.nodes": nodes}
    from comfy.cli_args import args

    args.cpu = True
    import folder_paths

    folder_paths.set_user_directory(str(folder))


def schedule() -> torch.Tensor:
    """(STEPS + 1,) sigmas."""
    u = torch.linspace(1, 0, STEPS + 1)
    return SHIFT * u / (1 + (SHIFT - 1) * u)


def noise_of(seed: int) -> torch.Tensor:
    """(CHANNELS, FRAMES, SIDE, SIDE) float32."""
    return drawn(CHANNELS, FRAMES, SIDE, SIDE, seed=FIRST_NOISE + seed)


class Pair:
    """Both experts. paths: role -> file; weights: role -> layer -> weight, float32, as loaded."""

    def __init__(self, paths: dict[str, str]):
        import comfy.model_management
        import comfy.sd

        self.models = {role: comfy.sd.load_diffusion_model(path) for role, path in paths.items()}
        comfy.model_management.load_models_gpu(list(self.models.values()))
        self.layers = {role: {name: module for name, module in model.model.diffusion_model.named_modules()
                              if name.startswith("blocks.") and isinstance(module, torch.nn.Linear)}
                       for role, model in self.models.items()}
        self.weights = {role: {layer: module.weight.detach().float().clone() for layer, module in layers.items()}
                        for role, layers in self.layers.items()}

    def record(self, pairs: list, session: str):
        """Sample (prompt, seed) pairs one by one through Calibrate and ComfyUI; returns the node's handle."""
        import comfy.sample
        import comfy.samplers
        from wan22_master.nodes.calibrate import Wan22Calibrate, io

        node = Wan22Calibrate.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "1"}})
        high, low, handle, _ = node.EXECUTE_NORMALIZED(
            session=session, model_high=self.models["high_noise"], model_low=self.models["low_noise"], mode="restart",
            layers="linears of blocks", keep="stats", tokens=256, stop_when_settled=False, settled_runs=4, settled_rise=0.01,
            allow_other_base=False).args
        sigmas, euler = schedule(), comfy.samplers.sampler_object("euler")
        split = int((sigmas[:-1] >= BOUNDARY).sum())
        texts = {prompt: [[context_of([prompt]), {}]] for prompt in {None, *(prompt for prompt, _ in pairs)}}
        for prompt, seed in pairs:
            noise = noise_of(seed).unsqueeze(0)
            latent, given = torch.zeros_like(noise), noise
            for model, part in ((high, sigmas[:split + 1]), (low, sigmas[split:])):
                latent = comfy.sample.sample_custom(model, given, CFG, euler, part, texts[prompt], texts[None], latent,
                                                    disable_pbar=True, seed=seed)
                given = torch.zeros_like(noise)
        return handle

    def put(self, weights: dict[str, dict[str, torch.Tensor]]) -> None:
        """Take other weights: role -> layer -> weight."""
        for role, layers in weights.items():
            for layer, weight in layers.items():
                self.layers[role][layer].weight.data.copy_(weight)

    def sample(self, pairs: list, see=None) -> torch.Tensor:
        """(pairs, CHANNELS, FRAMES, SIDE, SIDE), as the model sees latents. see: called with role, layer and input of each linear,
        gives what is multiplied instead, or None for the input itself."""
        hooks = [module.register_forward_pre_hook(_seeing(see, role, layer))
                 for role, layers in self.layers.items() for layer, module in layers.items()] if see else []
        try:
            return self._sample(pairs)
        finally:
            for hook in hooks:
                hook.remove()

    def _sample(self, pairs: list) -> torch.Tensor:
        prompts, x = [prompt for prompt, _ in pairs], torch.stack([noise_of(seed) for _, seed in pairs])
        text, sigmas = torch.cat([context_of(prompts), context_of([None] * len(pairs))]), schedule()
        for here, after in itertools.pairwise(sigmas):
            network = self.models[ROLES[0] if here >= BOUNDARY else ROLES[1]].model.diffusion_model
            said, unsaid = network(torch.cat([x, x]), torch.full((2 * len(x),), here * MILLE), text).chunk(2)
            x = x + (after - here) * (unsaid + CFG * (said - unsaid))
        return x


def _seeing(see, role: str, layer: str):
    def before(_, taken):
        found = see(role, layer, taken[0])
        return None if found is None else (found,)
    return before
