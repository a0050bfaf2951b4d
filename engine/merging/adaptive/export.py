"""A gated LoRA as an ordinary LoRA: what adaptive injection adds at strength 1, before the limiter, which belongs to a mix."""
from collections.abc import Iterator

import torch

from ...bands import one_thread
from ...loras.factors import Factors
from .apply import raw_factors
from .entry import Entry, factor_modules
from .store import GatedLora


def gated_lora(gated: GatedLora, lora, modules: dict[str, list], shapes: dict[str, tuple[int, ...]],
               ) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """(layer, up (out, r), down (r, in)), float32, alpha = r, for every tensor of `modules` with one in factor form, in order.

    modules: key of the base -> the LoRA's modules for it, as its ledger's `applied`; shapes: of the base tensors. r is at most the
    rank of the LoRA's own factors, and that where δ = 0. up and down are equally long but for a power of two, so that float16
    holds both. Modules in other forms are not here: they pass as they are. Raises RuntimeError for a tensor not measured.
    """
    for key, own in modules.items():
        if not factor_modules(own):
            continue
        entry, raw = gated.entry(key, shapes[key], own), raw_factors(lora, own, shapes[key])
        with one_thread():
            up, down = _gated(entry, raw) if entry.rank else (raw.up, raw.down)
            balanced = _balanced(up, down)
        yield (key.removesuffix(".weight"), *balanced)


def _gated(entry: Entry, raw: Factors) -> tuple[torch.Tensor, torch.Tensor]:
    """Both tiers as they pass the gate, at strength 1."""
    return (raw.up.double() @ (entry.left @ entry.inner(1.0, 1.0))).float(), (entry.right @ raw.down.double()).float()


def _balanced(up: torch.Tensor, down: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same product, with a power of two moved from the longer to the shorter: no value but a subnormal one is rounded."""
    ratio = down.double().norm() / up.double().norm()
    if not torch.isfinite(ratio) or not ratio > 0:
        return up, down
    half = torch.exp2(torch.round(torch.log2(ratio) / 2)).item()
    return up * half, down / half
