"""Tiny models with the real names of Wan 2.2, LoRAs for them, recipes, and what plain float64 torch makes of the merge."""

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.engine.jobs.run import run
from wan22_master.engine.recipes.recipe import Recipe, parse

DIM, FFN, BLOCKS, RANK = 128, 320, 2, 4
ATTENTION = [f"{kind}.{part}" for kind in ("self_attn", "cross_attn") for part in "qkvo"]
PAIR = ("high_noise", "low_noise")


def linears(blocks: int = BLOCKS) -> list[str]:
    """The layers of the block linears."""
    return [f"blocks.{n}.{name}" for n in range(blocks) for name in [*ATTENTION, "ffn.0", "ffn.2"]]


def shapes(blocks: int = BLOCKS, ffn: int = FFN) -> dict[str, tuple[int, ...]]:
    """Key -> shape of a T2V model of width 128, in the order of the original files; the text encoder is 64 wide."""
    found = {"patch_embedding.weight": (DIM, 16, 1, 2, 2), "patch_embedding.bias": (DIM,), "text_embedding.0.weight": (DIM, 64)}
    found |= {"text_embedding.0.bias": (DIM,), "time_projection.1.weight": (6 * DIM, DIM)}
    for n in range(blocks):
        found[f"blocks.{n}.modulation"] = (1, 6, DIM)
        for name in ATTENTION:
            found |= {f"blocks.{n}.{name}.weight": (DIM, DIM), f"blocks.{n}.{name}.bias": (DIM,)}
        found |= {
            f"blocks.{n}.self_attn.norm_q.weight": (DIM,),
            f"blocks.{n}.norm3.weight": (DIM,),
            f"blocks.{n}.norm3.bias": (DIM,),
        }
        found |= {f"blocks.{n}.ffn.0.weight": (ffn, DIM), f"blocks.{n}.ffn.0.bias": (ffn,)}
        found |= {f"blocks.{n}.ffn.2.weight": (DIM, ffn), f"blocks.{n}.ffn.2.bias": (DIM,)}
    return found | {"head.modulation": (1, 2, DIM), "head.head.weight": (64, DIM), "head.head.bias": (64,)}


def dtype_of(key: str) -> torch.dtype:
    """As repackaged files have it: what is computed in 32 bit is stored so, the rest in 16; one tensor of another kind of 16."""
    if key.startswith("patch_embedding") or key.endswith("modulation") or "norm" in key:
        return torch.float32
    return torch.float16 if key == "head.head.weight" else torch.bfloat16


def base(seed: int = 0, blocks: int = BLOCKS, ffn: int = FFN) -> dict[str, torch.Tensor]:
    """Normal weights of the size trained ones have."""
    draw = torch.Generator().manual_seed(seed)
    return {key: (torch.randn(shape, generator=draw) * 0.03).to(dtype_of(key)) for key, shape in shapes(blocks, ffn).items()}


def lora(
    seed: int = 1, layers: list[str] | None = None, rank: int = RANK, alpha: float | None = None, size: float = 4e-4, ffn: int = FFN
):
    """bf16 factors whose delta has elements of about `size`, named as Wan's own LoRAs are."""
    draw, found = torch.Generator().manual_seed(seed), {}
    for layer in linears() if layers is None else layers:
        out, into = shapes(BLOCKS, ffn)[f"{layer}.weight"]
        found[f"diffusion_model.{layer}.lora_A.weight"] = torch.randn(rank, into, generator=draw).bfloat16()
        found[f"diffusion_model.{layer}.lora_B.weight"] = (torch.randn(out, rank, generator=draw) * size / rank**0.5).bfloat16()
        if alpha is not None:
            found[f"diffusion_model.{layer}.alpha"] = torch.tensor(alpha)
    return found


def delta64(tensors: dict[str, torch.Tensor], layer: str) -> torch.Tensor | None:
    """alpha / rank * B @ A of one layer in float64; None where the LoRA has nothing for it."""
    stem = f"diffusion_model.{layer}"
    if f"{stem}.lora_A.weight" not in tensors:
        return None
    down, up = tensors[f"{stem}.lora_A.weight"].double(), tensors[f"{stem}.lora_B.weight"].double()
    alpha = tensors.get(f"{stem}.alpha")
    return (1.0 if alpha is None else alpha.double().item() / down.shape[0]) * (up @ down)


def merge64(weights: dict[str, torch.Tensor], parts: list[tuple[dict[str, torch.Tensor], float]]) -> dict[str, torch.Tensor]:
    """Weights + sum of strength * delta, float64. parts: (LoRA, strength)."""
    found = {key: tensor.double() for key, tensor in weights.items()}
    for tensors, strength in parts:
        for key in found:
            delta = delta64(tensors, key.removesuffix(".weight"))
            if delta is not None:
                found[key] = found[key] + strength * delta
    return found


def save(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> str:
    """Write by the safetensors library; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path, metadata)
    return str(path)


def write_pair(folder: Path, **options) -> dict[str, str]:
    """Two experts; role -> path."""
    return {role: save(folder / f"tiny_{role}.safetensors", base(number, **options)) for number, role in enumerate(PAIR)}


def recipe(folder: Path, experts: dict[str, str], loras: list[dict] = (), formats=("bf16",), **more) -> Recipe:
    """A recipe of one pass. loras: entries as in JSON; formats: names, or outputs as in JSON; more: `save` and other fields."""
    passes = more.pop("passes", [{"name": "Pass 1", "loras": list(loras)}] if loras else [])
    outputs = [{"format": each} if isinstance(each, str) else each for each in formats]
    save_as = {"folder": str(folder), "name": "plain", **more.pop("save", {})}
    return parse(
        {
            "version": 1,
            "title": "mix",
            "experts": experts,
            "passes": passes,
            "outputs": outputs,
            "save": save_as,
            "device": "cpu",
            **more,
        }
    )


def go(wish: Recipe, reports: Path, **options) -> dict:
    """Plan and run; the report."""
    with plan_recipe(wish, reports) as plan:
        return run(plan, reports=reports, **options)


def files(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of every file in a folder."""
    return (
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())} if folder.exists() else {}
    )


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal in dtype, shape and every bit; zeros of both signs differ."""
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))
    )


def load(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """An output as the safetensors library reads it."""
    return load_file(folder / name)
