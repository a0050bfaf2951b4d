"""What Calibrate costs: time of a sampling step with and without it, at 2, 20 and 40 blocks of a 14B model's width and few tokens.

    ~/comfy/ComfyUI/.venv/bin/python benchmarks/calibration_overhead.py ~/comfy/ComfyUI [--blocks 2 20 40] [--side 16] [--rounds 3]

ComfyUI's own model, sampled by ComfyUI. 40 blocks in float32, as the CPU computes, are 56 GB: every block holds the tensors of one
and the same block, 1.4 GB, which no cache holds either, so that each block reads them from memory as its own would be. Few tokens
is the hard case for a ratio: a layer then reads its weights for little, and what does not depend on tokens weighs most. Runs
alternate, with and without; medians of all steps but a run's first, in which Calibrate compares all layers: that one is told apart.
Processor time is of all threads and is what other programs disturb least; waiting for the disk is in the clock's time alone.
"""
import argparse
import sys
import tempfile
import time
import types

parser = argparse.ArgumentParser()
parser.add_argument("comfyui")
parser.add_argument("--blocks", type=int, nargs="+", default=[2, 20, 40])
parser.add_argument("--side", type=int, default=16, help="latent pixels; side²/4 tokens for cond and as many for uncond")
parser.add_argument("--rounds", type=int, default=3)
parser.add_argument("--steps", type=int, default=4)
parser.add_argument("--threads", type=int, help="of torch; 1 on a busy machine: threads waiting for each other count as busy")
asked = parser.parse_args()
sys.path.insert(0, asked.comfyui)
import harness  # noqa: E402 - the pack by its name

sys.argv = sys.argv[:1]
server = types.ModuleType("server")
silent = types.SimpleNamespace(send_progress_text=lambda *told: None, prompt_queue=None)
server.PromptServer = types.SimpleNamespace(instance=silent)
sys.modules["server"] = server
_nodes = types.ModuleType("wan22_master.nodes")
_nodes.__path__ = [str(harness.ROOT / "nodes")]
sys.modules["wan22_master.nodes"] = _nodes
from comfy.cli_args import args  # noqa: E402

args.cpu = True
import comfy.model_patcher  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.supported_models  # noqa: E402
import folder_paths  # noqa: E402
import torch  # noqa: E402
from wan22_master.nodes.calibrate import Wan22Calibrate, io  # noqa: E402

WIDTH = {"dim": 5120, "num_heads": 40, "ffn_dim": 13824, "freq_dim": 256, "in_dim": 16, "out_dim": 16, "patch_size": (1, 2, 2),
         "window_size": (-1, -1), "qk_norm": True, "cross_attn_norm": True, "eps": 1e-6}      # Wan 2.2 T2V A14B
TEXT = 64                                          # tokens; the real text encoder gives 512


def model_of(blocks: int):
    """A MODEL whose blocks share their tensors."""
    config = {**comfy.supported_models.WAN21_T2V.unet_config, **WIDTH, "num_layers": blocks}
    model = comfy.supported_models.WAN21_T2V(config).get_model({}, device=torch.device("meta"))
    network, drawn = model.diffusion_model, {}
    for name, value in network.state_dict().items():
        shared = "blocks.0." + name.split(".", 2)[2] if name.startswith("blocks.") else name
        if shared not in drawn:
            drawn[shared] = torch.randn(value.shape) / value.shape[-1] ** 0.5
    network.load_state_dict({name: drawn["blocks.0." + name.split(".", 2)[2] if name.startswith("blocks.") else name]
                             for name in network.state_dict()}, assign=True)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def now() -> torch.Tensor:
    """Seconds by the clock, and of processor time of all threads, which a busy machine leaves as it is but for its caches."""
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)


def steps_of(model, seed: int) -> torch.Tensor:
    """(steps, 2): seconds of each step of one run, from report to report, both ways of `now`."""
    draw = torch.Generator().manual_seed(seed)
    texts = [[[torch.randn(1, TEXT, 4096, generator=draw), {}]] for _ in range(2)]
    noise = torch.randn(1, 16, 1, asked.side, asked.side, generator=draw)
    times = [now()]
    euler, sigmas = comfy.samplers.sampler_object("euler"), torch.linspace(1.0, 0.0, asked.steps + 1)
    comfy.sample.sample_custom(model, noise, 2.0, euler, sigmas, *texts, torch.zeros_like(noise),
                               callback=lambda *told: times.append(now()), disable_pbar=True, seed=seed)
    return torch.stack(times).diff(dim=0)


def measure(blocks: int) -> list[str]:
    """A row of the table."""
    plain, times = model_of(blocks), {False: [], True: []}
    node = Wan22Calibrate.PREPARE_CLASS_CLONE({"hidden_inputs": {io.Hidden.unique_id: "1"}})
    marked = node.EXECUTE_NORMALIZED(session=f"bench_{blocks}", model_high=plain, mode="restart", layers="all linears",
                                     keep="stats", tokens=128, stop_when_settled=False, settled_runs=4, settled_rise=0.01,
                                     allow_other_base=False).args[0]
    steps_of(plain, 0)                             # pages come in
    for number in range(asked.rounds):
        for is_marked in (number % 2 == 0, number % 2 == 1):
            times[is_marked].append(steps_of(marked if is_marked else plain, number))
    first, later = ({which: torch.cat([run[part] for run in runs]).median(0).values for which, runs in times.items()}
                    for part in (slice(0, 1), slice(1, None)))
    more, more_first = ((each[True] / each[False] - 1).tolist() for each in (later, first))
    return [str(blocks), str(asked.side ** 2 // 4), *(f"{later[which][0]:.3f} s" for which in (False, True)),
            *(f"{value:+.1%}" for value in (*more, *more_first))]


if asked.threads:
    torch.set_num_threads(asked.threads)
with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
    folder_paths.set_user_directory(folder)
    harness.table(["blocks", "tokens", "step", "with Calibrate", "more", "of processor time", "first step",
                   "of processor time"], [measure(blocks) for blocks in asked.blocks])
