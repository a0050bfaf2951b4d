"""Wan 2.2 models and LoRAs of real structure and random values, from a few megabytes up to the real 28.6 GB.

Keys and shapes are those of Wan 2.2 (github.com/Wan-Video/Wan2.2, wan/modules/model.py), so ComfyUI detects and samples them.
The values mean nothing: normal, with standard deviations of the size trained models have.
"""
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from .random_file import Pools, seed_of, write_file
from .specs import TensorSpec

TEXT_DIM, FREQ_DIM, PATCH = 4096, 256, (1, 2, 2)
CHANNELS = {"t2v": (16, 16), "i2v": (36, 16)}  # in, out: wan/configs/wan_t2v_A14B.py and wan_i2v_A14B.py
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
LINEARS = (*(f"{attention}.{part}" for attention in ("self_attn", "cross_attn") for part in "qkvo"), "ffn.0", "ffn.2")
WEIGHT_STDS = {"q": 0.04, "k": 0.04, "v": 0.03, "o": 0.03, "ffn": 0.025}  # by the last name of a block linear; chosen, not measured
OTHER_STD, BIAS_STD = 0.05, 0.02
DELTA_RMS = 4e-4  # of alpha / rank * up @ down: a shift of about 1.5 %, as a trained LoRA at strength 1


@dataclass(frozen=True)
class Sizes:
    """Of a model and of the LoRAs for it; a real expert has dim 5120, ffn 13824, blocks 40. Raises ValueError."""

    dim: int = 1536
    ffn: int = 8960
    blocks: int = 4
    rank: int = 32
    dtype: str = "bf16"
    kind: str = "t2v"

    def __post_init__(self):
        if self.dim < 128 or self.dim % 128:
            raise ValueError(f"dim: expected a multiple of 128 (ComfyUI takes heads = dim / 128), found {self.dim}")
        if self.kind not in CHANNELS or self.dtype not in DTYPES:
            raise ValueError(f"expected kind {'/'.join(CHANNELS)} and dtype {'/'.join(DTYPES)}, found {self.kind}, {self.dtype}")


@dataclass(frozen=True)
class SyntheticSet:
    """Paths of what `write_set` wrote: role -> file, for the model and for each LoRA."""

    experts: dict[str, str]
    native_lora: dict[str, str]
    kohya_lora: dict[str, str]


def _linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def _block(number: int, dim: int, ffn: int) -> dict[str, tuple[int, ...]]:
    place = f"blocks.{number}"
    shapes = {f"{place}.modulation": (1, 6, dim)}
    for attention in ("self_attn", "cross_attn"):
        for part in "qkvo":
            shapes |= _linear(f"{place}.{attention}.{part}", dim, dim)
        shapes |= {f"{place}.{attention}.norm_{part}.weight": (dim,) for part in "qk"}
        if attention == "self_attn":
            shapes |= {f"{place}.norm3.weight": (dim,), f"{place}.norm3.bias": (dim,)}
    return shapes | _linear(f"{place}.ffn.0", ffn, dim) | _linear(f"{place}.ffn.2", dim, ffn)


def model_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Key -> shape of every tensor of one expert, in the order of the original files."""
    dim, (taken, given) = sizes.dim, CHANNELS[sizes.kind]
    shapes = {"patch_embedding.weight": (dim, taken, *PATCH), "patch_embedding.bias": (dim,)}
    shapes |= _linear("text_embedding.0", dim, TEXT_DIM) | _linear("text_embedding.2", dim, dim)
    shapes |= _linear("time_embedding.0", dim, FREQ_DIM) | _linear("time_embedding.2", dim, dim)
    shapes |= _linear("time_projection.1", 6 * dim, dim)
    for number in range(sizes.blocks):
        shapes |= _block(number, dim, sizes.ffn)
    return shapes | {"head.modulation": (1, 2, dim)} | _linear("head.head", given * math.prod(PATCH), dim)


def _std_of(key: str) -> float:
    """Standard deviation of a tensor's values; norms lie around 1 and are drawn apart."""
    layer, _, last = key.rpartition(".")
    if last == "bias":
        return BIAS_STD
    return WEIGHT_STDS.get("ffn" if ".ffn." in layer else layer.rpartition(".")[2], OTHER_STD)


def _norm_bytes(seed: object, key: str, spec: TensorSpec) -> memoryview:
    values = 1 + 0.1 * torch.randn(spec.numel, generator=torch.Generator().manual_seed(seed_of(seed, key)))
    return memoryview(values.to(spec.dtype).view(torch.uint8).numpy())


def write_model(path: str | os.PathLike, sizes: Sizes, seed: object = 0) -> int:
    """One expert. Same sizes and seed, same bytes. Returns the file's size."""
    dtype = DTYPES[sizes.dtype]
    specs = {key: TensorSpec(shape, dtype) for key, shape in model_shapes(sizes).items()}
    pools = Pools(seed, dtype, max(spec.numel for spec in specs.values()))

    def pieces() -> Iterator[memoryview]:
        for key, spec in specs.items():
            if "norm" in key and key.endswith(".weight"):
                yield _norm_bytes(seed, key, spec)
            else:
                yield from pools.pieces(key, spec.numel, _std_of(key))

    return write_file(path, specs, pieces(), f"random values, seed {seed}")


def lora_specs(sizes: Sizes, dialect: str) -> dict[str, TensorSpec]:
    """Key -> spec of a LoRA on all block linears. dialect: "native" or "kohya"."""
    shapes, dtype, specs = model_shapes(sizes), DTYPES[sizes.dtype], {}
    for layer in (f"blocks.{number}.{linear}" for number in range(sizes.blocks) for linear in LINEARS):
        rows, columns = shapes[f"{layer}.weight"]
        stem = f"diffusion_model.{layer}" if dialect == "native" else f"lora_unet_{layer.replace('.', '_')}"
        down, up = ("lora_A", "lora_B") if dialect == "native" else ("lora_down", "lora_up")
        specs[f"{stem}.alpha"] = TensorSpec((), torch.int64 if dialect == "native" else dtype)
        specs[f"{stem}.{down}.weight"] = TensorSpec((sizes.rank, columns), dtype)
        specs[f"{stem}.{up}.weight"] = TensorSpec((rows, sizes.rank), dtype)
    return specs


def write_lora(path: str | os.PathLike, sizes: Sizes, dialect: str, seed: object = 0) -> int:
    """One LoRA. native: `diffusion_model.` keys, lora_A/lora_B, int64 alpha = rank; kohya (musubi): alpha = rank / 2.

    down is drawn as trainers initialise it, std 1 / sqrt(3 in_features); up so that the delta's rms is DELTA_RMS.
    """
    specs = lora_specs(sizes, dialect)
    pools = Pools(seed, DTYPES[sizes.dtype], max(spec.numel for spec in specs.values()))
    alpha = sizes.rank if dialect == "native" else sizes.rank / 2

    def pieces() -> Iterator[memoryview]:
        columns = 0
        for key, spec in specs.items():
            if key.endswith(".alpha"):
                yield memoryview(torch.tensor([alpha]).to(spec.dtype).view(torch.uint8).numpy())
            elif key.endswith(("lora_A.weight", "lora_down.weight")):
                columns = spec.shape[1]
                yield from pools.pieces(key, spec.numel, (3 * columns) ** -0.5)
            else:
                yield from pools.pieces(key, spec.numel, DELTA_RMS * sizes.rank / alpha * (3 * columns / sizes.rank) ** 0.5)

    return write_file(path, specs, pieces(), f"random {dialect} LoRA, rank {sizes.rank}, seed {seed}")


def write_set(folder: str | os.PathLike, sizes: Sizes | None = None, seed: int = 0) -> SyntheticSet:
    """A pair and two LoRAs for it, a file per expert each, into `folder`."""
    sizes, folder, found = sizes or Sizes(), Path(folder), {}
    for what in (f"wan2.2_{sizes.kind}", "native_lora", "kohya_lora"):
        for role in ("high_noise", "low_noise"):
            path = folder / f"{what}_{role}.safetensors"
            if what.endswith("lora"):
                write_lora(path, sizes, what.split("_")[0], f"{seed} {what} {role}")
            else:
                write_model(path, sizes, f"{seed} {role}")
            found.setdefault(what, {})[role] = str(path)
    return SyntheticSet(*found.values())
