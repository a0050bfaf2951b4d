"""DARE (Yu et al. 2023, arXiv 2311.03099, section 3.2): keep each element by a coin of probability `density`, divide by density.

The coin is a function of (seed, key, LoRA, element index) alone, by the finalizer of SplitMix64 (Steele, Lea, Flood 2014, "Fast
splittable pseudorandom number generators", figure 16): no state, so the bytes depend neither on bands nor on threads nor on the
library's generators. The authors warn that LoRAs bear less than full fine-tunes do (huggingface/peft#1364).
"""
import hashlib
from collections.abc import Sequence

import torch

from ...bands import Rows
from .select import as_matrix

GOLDEN, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(value: int) -> int:
    """The int64 of the same 64 bits: torch has no unsigned product."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shift(tensor: torch.Tensor, by: int) -> torch.Tensor:
    """Logical right shift of int64."""
    return (tensor >> by) & ((1 << (64 - by)) - 1)


def coin_key(seed: int, key: str, lora: str) -> int:
    """64 bits that name one tensor of one LoRA under one seed. lora: SHA-256 of its file."""
    return int.from_bytes(hashlib.sha256(f"{seed}|{key}|{lora}".encode()).digest()[:8], "little")


def coins(coin: int, density: float, place: tuple[Rows, slice, int], device: torch.device) -> torch.Tensor:
    """Which elements of a tile stay, bool, (rows, columns). coin: `coin_key`; place: rows, columns, and columns of the tensor."""
    rows, columns, width = place
    index = torch.arange(columns.start + 1, columns.stop + 1, device=device)
    index = torch.arange(rows[0], rows[1], device=device)[:, None] * width + index
    mixed = index * _signed(GOLDEN) + _signed(coin)
    mixed = (mixed ^ _shift(mixed, 30)) * _signed(MIX_1)
    mixed = (mixed ^ _shift(mixed, 27)) * _signed(MIX_2)
    return _shift(mixed ^ _shift(mixed, 31), 11) < int(density * (1 << 53))


def drop(delta: torch.Tensor, density: float, coin: int) -> torch.Tensor:
    """One delta with each element kept with probability `density` and divided by it; a copy, float32."""
    flat = as_matrix(delta)
    place = ((0, flat.shape[0]), slice(0, flat.shape[1]), flat.shape[1])
    return (flat * coins(coin, density, place, flat.device) / (density or 1.0)).reshape(delta.shape)


def dare(deltas: Sequence[torch.Tensor], density: float, coin: Sequence[int]) -> torch.Tensor:
    """DARE, linear: the sum of the thinned deltas, which already contain their strengths. coin: a `coin_key` for each."""
    return sum(drop(delta, density, each) for delta, each in zip(deltas, coin, strict=True))
