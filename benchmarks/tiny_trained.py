"""A tiny pair of Wan 2.2 T2V experts, trained for some minutes on a CPU, for measurements that random weights cannot give.

    COMFYUI/.venv/bin/python benchmarks/tiny_trained.py COMFYUI FOLDER [--steps 300] [--blocks 10] [--skew 1.0]

Writes FOLDER/tiny_high_noise.safetensors and tiny_low_noise.safetensors, bf16, native names. The model is ComfyUI's own
(comfy/ldm/wan/model.py), dim 256, ffn 512, trained by flow matching: from x = (1 - sigma) x0 + sigma noise it learns noise - x0,
sigma = shift u / (1 + (shift - 1) u), u uniform (Esser et al. 2024, section 3.1; shift 5 as Wan). Then each expert goes on alone,
sigma above or below 0.875 (wan/configs/wan_t2v_A14B.py). What it learns stands in tiny_videos.py.

skew: minutes of training do not make the unequal channels of real transformers. So a fixed factor s = exp(skew * normal), root mean
square 1, multiplies the input of every block linear, or for ffn.2 that of its GELU, all through the training; at the end s is put
into what writes the input (norm3, the modulation, v, text_embedding.2, ffn.0), so that the file is a plain Wan model of the same
function. Weights of the readers are as training left them. 0: no factors.
"""
import argparse
import copy
import math
import sys
from pathlib import Path

import torch
from tiny_videos import PROMPTS, context_of, drawn, videos

DIM, FFN = 256, 512                                # the least that has 2 heads and whole blocks of GGUF's K types
FIRST_SEED = 10**6                                 # of the batches that train
SHIFT, BOUNDARY, UNSAID = 5.0, 0.875, 0.15         # UNSAID: share of samples without a prompt, for cfg
BATCH, RATE, WARM, JUDGED = 10, 2e-3, 30, 20       # WARM: steps; JUDGED: batches that a loss is told of


def new_model(blocks: int) -> torch.nn.Module:
    """ComfyUI's Wan in float32, its weights drawn as Wan's own init_weights draws them."""
    import comfy.ldm.wan.model as wan
    import comfy.model_management
    import comfy.ops

    comfy.model_management.in_training = True      # its fused rope has no gradient
    model = wan.WanModel(dim=DIM, ffn_dim=FFN, num_heads=DIM // 128, num_layers=blocks, dtype=torch.float32,
                         operations=comfy.ops.disable_weight_init)
    torch.manual_seed(0)
    for key, value in model.named_parameters():
        with torch.no_grad():
            if key.endswith("modulation"):
                value.normal_(std=DIM ** -0.5)
            elif value.ndim == 1:
                value.fill_(1.0 if "norm" in key and key.endswith("weight") else 0.0)
            elif key.startswith(("text_embedding", "time_embedding", "head")):
                value.normal_(std=0.02)
            else:
                torch.nn.init.xavier_uniform_(value.flatten(1))
    return model


def loss_of(model: torch.nn.Module, seed: int, sigmas: tuple[float, float]) -> torch.Tensor:
    """Mean squared error of one batch over the mean square of its target; sigmas: the range they are drawn from."""
    draw = torch.Generator().manual_seed(seed)
    low, high = (each / (SHIFT - (SHIFT - 1) * each) for each in sigmas)
    u = low + (high - low) * torch.rand(BATCH, generator=draw)
    sigma = SHIFT * u / (1 + (SHIFT - 1) * u)
    prompts = [PROMPTS[number] for number in torch.randint(len(PROMPTS), (BATCH,), generator=draw).tolist()]
    said = [prompt if keep else None for prompt, keep in zip(prompts, torch.rand(BATCH, generator=draw) > UNSAID, strict=True)]
    clean, part = videos(prompts, seed), sigma.view(-1, 1, 1, 1, 1)
    noise = torch.randn(clean.shape, generator=draw)
    with torch.autocast("cpu", torch.bfloat16):
        out = model((1 - part) * clean + part * noise, sigma * 1000, context_of(said))
    return (out.float() - (noise - clean)).square().mean() / (noise - clean).square().mean()


def train(model: torch.nn.Module, steps: int, sigmas: tuple[float, float], seed: int) -> None:
    """Steps of AdamW, the rate falling to zero with them. The model is modified."""
    optimizer = torch.optim.AdamW(model.parameters(), RATE, betas=(0.9, 0.98), weight_decay=0.01)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        loss = loss_of(model, seed + step, sigmas)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def sizes_of(blocks: int, skew: float) -> dict[str, torch.Tensor]:
    """Layer -> how large each channel of its input is made; of ffn.2, of what its GELU takes. Root mean square 1."""
    found = {}
    for number in range(blocks):
        seeds = {"self_attn.q": 11, "self_attn.k": 11, "self_attn.v": 11, "ffn.0": 12, "cross_attn.k": 13, "cross_attn.v": 13,
                 "cross_attn.q": 100 + number, "self_attn.o": 200 + number, "cross_attn.o": 300 + number, "ffn.2": 400 + number}
        for name, seed in seeds.items():           # one for all blocks where they share what writes the input
            size = torch.exp(skew * drawn(FFN if name == "ffn.2" else DIM, seed=seed))
            found[f"blocks.{number}.{name}"] = size / size.square().mean().sqrt()
    return found


def multiply_inputs(model: torch.nn.Module, sizes: dict[str, torch.Tensor]) -> None:
    """Put hooks on that multiply, for training."""
    layers = dict(model.named_modules())
    for layer, size in sizes.items():
        if layer.endswith("ffn.2"):
            layers[layer[:-1] + "0"].register_forward_hook(lambda _, __, out, size=size: out * size)
        else:
            layers[layer].register_forward_pre_hook(lambda _, taken, size=size: (taken[0] * size,))


def fold(weights: dict[str, torch.Tensor], sizes: dict[str, torch.Tensor]) -> None:
    """Put the sizes into what writes the inputs, instead of hooks. weights: a state dict in float32, modified."""
    def write(layer: str, size: torch.Tensor) -> None:
        for key in (f"{layer}.weight", f"{layer}.bias"):
            weights[key] *= size.view(-1, *[1] * (weights[key].ndim - 1))

    blocks = [layer.removesuffix(".ffn.0") for layer in sizes if layer.endswith("ffn.0")]
    write("text_embedding.2", sizes["blocks.0.cross_attn.k"])
    for block in blocks:
        for writer, reader in (("norm3", "cross_attn.q"), ("self_attn.v", "self_attn.o"), ("cross_attn.v", "cross_attn.o"),
                               ("ffn.0", "ffn.2")):
            write(f"{block}.{writer}", sizes[f"{block}.{reader}"])
    for shift, reader in ((0, "self_attn.q"), (3, "ffn.0")):   # input = norm * (1 + scale) + shift; scale is the next chunk
        size, rows = sizes[f"blocks.0.{reader}"], slice(shift * DIM, (shift + 2) * DIM)
        weights["time_projection.1.weight"][rows] *= size.repeat(2).view(-1, 1)
        weights["time_projection.1.bias"][rows] *= size.repeat(2)
        for block in blocks:
            weights[f"{block}.modulation"][:, shift:shift + 2] *= size
            weights[f"{block}.modulation"][:, shift + 1] += size - 1


def mean_loss(model: torch.nn.Module, sigmas: tuple[float, float]) -> float:
    """Over batches that no training sees."""
    with torch.no_grad():
        return sum(loss_of(model, number, sigmas).item() for number in range(JUDGED)) / JUDGED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("comfyui")
    parser.add_argument("folder", type=Path)
    for name, default in {"steps": 300, "blocks": 10, "skew": 1.0}.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    asked = parser.parse_args()
    sys.path.insert(0, asked.comfyui)
    from comfy.cli_args import args
    from safetensors.torch import save_file

    args.cpu = True
    model, sizes = new_model(asked.blocks), sizes_of(asked.blocks, asked.skew)
    multiply_inputs(model, sizes)                  # all 1 where skew is 0
    losses = {"untrained": mean_loss(model, (0.0, 1.0))}
    train(model, asked.steps, (0.0, 1.0), FIRST_SEED)
    losses["trained"] = mean_loss(model, (0.0, 1.0))
    asked.folder.mkdir(parents=True, exist_ok=True)
    for role, sigmas in (("high_noise", (BOUNDARY, 1.0)), ("low_noise", (0.0, BOUNDARY))):
        expert = copy.deepcopy(model)              # hooks and all
        losses[f"{role} before"] = mean_loss(expert, sigmas)
        train(expert, asked.steps // 7, sigmas, 2 * FIRST_SEED)
        losses[role] = mean_loss(expert, sigmas)
        weights = {key: value.detach().clone() for key, value in expert.state_dict().items()}
        fold(weights, sizes)
        save_file({key: value.bfloat16() for key, value in weights.items()}, asked.folder / f"tiny_{role}.safetensors")
    print("loss, of the target's mean square: " + ", ".join(f"{name} {value:.3f}" for name, value in losses.items()))


if __name__ == "__main__":
    main()
