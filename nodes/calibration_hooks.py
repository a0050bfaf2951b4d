"""Hooks before the linears of a diffusion model, for the length of one forward pass, and which of them see one tensor.

A linear of ComfyUI is any module with `in_features`, whatever its weight is stored in (comfy/ops.py; ComfyUI-GGUF derives from it),
and it is called as a module, so a forward pre-hook sees its input. One is not: the INT8 product of ffn.2 takes the GELU along and
passes its forward by (comfy/ops.py, linear_input_act).

q, k and v of a self-attention see one tensor, k and v of all cross-attentions see the one text: each is a point, measured once.
That is how the model is written, but a node may give each block its own text. So the first pass of each run looks at every layer,
and one whose largest |x| is not bit for bit that of its point becomes a point of its own.
"""
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch

Seen = Callable[[str, torch.Tensor], None]         # layer, its input
BLOCKS = ("blocks.", "vace_blocks.")
INT8_LAYOUT = "TensorWiseINT8Layout"               # comfy/ops.py, linear_input_act


def linears(network: torch.nn.Module, *, only_blocks: bool = False) -> dict[str, torch.nn.Module]:
    """Name, relative to the diffusion model, -> module of every linear in the model's order. only_blocks: of its blocks alone."""
    return {name: module for name, module in network.named_modules()
            if hasattr(module, "in_features") and (not only_blocks or name.startswith(BLOCKS))}


def bypassed(modules: Mapping[str, torch.nn.Module]) -> list[str]:
    """Those linears that ComfyUI multiplies without calling them, so that nothing of their inputs is seen."""
    return [name for name, module in modules.items() if name.endswith("ffn.2")
            and getattr(module.weight, "_layout_cls", None) == INT8_LAYOUT]


@contextmanager
def watched(modules: Mapping[str, torch.nn.Module], see: Seen) -> Iterator[None]:
    """Call `see` before each of these modules. No hook is left afterwards, whatever happens inside.

    The hooks come first, before those of other nodes that change an input: what is recorded is what the model makes.
    """
    hooks = []
    try:
        for name, module in modules.items():
            hooks.append(module.register_forward_pre_hook(_hook(name, see), prepend=True))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _hook(name: str, see: Seen):
    def before(module, args) -> None:
        see(name, args[0].detach())
    return before


def largest(x: torch.Tensor) -> torch.Tensor:
    """Exact largest |x| of each place of dim 0, on the device of `x` and in its dtype; no copy of `x` is made."""
    least, most = torch.aminmax(x.reshape(x.shape[0], -1), dim=1)
    return torch.maximum(most, -least)


class Verified:
    """Points as the layers really see them: it is told every layer's input of one pass and passes on what is to be recorded.

    points: point -> layers that see one tensor, by the way the model is written. see: gets each point's input, and that of a layer
    that turned out to be a point of its own. Waits for the device once per layer that is no point.
    """

    def __init__(self, points: Mapping[str, Iterable[str]], see: Seen):
        self._leader = {layer: point for point, layers in points.items() for layer in layers}
        self._see = see
        self._largest: dict[str, torch.Tensor] = {}
        self.seen: set[str] = set()
        self.alone: list[str] = []                 # layers that do not see what their point sees

    def see(self, layer: str, x: torch.Tensor) -> None:
        self.seen.add(layer)
        point = self._leader[layer]
        if point == layer:
            self._largest[point] = largest(x)
        elif layer in self.alone or not self._is_shared(point, x):
            self.alone += [layer] if layer not in self.alone else []
        else:
            return
        self._see(layer, x)

    def _is_shared(self, point: str, x: torch.Tensor) -> bool:
        theirs, mine = self._largest.get(point), largest(x)
        return theirs is not None and theirs.shape == mine.shape and theirs.dtype == mine.dtype and _same_bits(theirs, mine)

    def points(self) -> dict[str, tuple[str, ...]]:
        """Point -> layers, of what was seen in this pass, in the model's order."""
        found: dict[str, tuple[str, ...]] = {}
        for layer, point in self._leader.items():
            if layer in self.seen:
                own = layer if layer in self.alone else point
                found[own] = (*found.get(own, ()), layer)
        return found


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Also of NaN, which equals nothing."""
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
