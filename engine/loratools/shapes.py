"""The shape of every tensor that some LoRAs change, from the LoRAs alone: a merge of LoRAs needs no base.

    pair: up (out, r), down (r, in, kernel...), core (r, r, kernel...); LoHa: one side; LoKr: (a, b), (c, d, ...) → (ac, bd, ...)
A module whose parts do not tell it (OFT, IA3) takes the shape that another module of the layer tells.
"""
import torch

from ..errors import LoraError
from ..loras.dialects import Index
from ..loras.lora import LoraFile
from ..specs import TensorSpec
from .reading import Contents, FileModule, read_contents
from .wan_layers import is_bare

Shape = tuple[int, ...]
BIASES = {"diff_b", "b_norm", "bias"}
DIRECT = ("diff", "w_norm", "set_weight")


def index_of(loras: list[LoraFile], role: str | None) -> Index:
    """Index of all tensors that the LoRAs change on one expert. Raises LoraError when two of them disagree on a shape."""
    found: dict[str, tuple[Shape, str]] = {}
    for lora in loras:
        contents = read_contents(lora)
        for module in contents.modules:
            if module.expert in {None, role} or role is None:
                for key, shape in _shapes(contents, module).items():
                    known, by = found.setdefault(key, (shape, lora.name))
                    found[key] = (_agreed(key, known, shape, (by, lora.name)), by)
    specs = {key: TensorSpec(shape, torch.float32) for key, (shape, _) in found.items()}
    return Index(specs, specs)


def _agreed(key: str, known: Shape, shape: Shape, names: tuple[str, str]) -> Shape:
    """One shape of two: equal, or one of them with the kernel flattened into the inputs."""
    if TensorSpec(known, torch.float32).numel != TensorSpec(shape, torch.float32).numel or known[:1] != shape[:1]:
        raise LoraError(f"{key}: expected one shape in all LoRAs, found {known} in {names[0]} and {shape} in {names[1]}; "
                        "they were made for different models")
    return max(known, shape, key=len)


def _shapes(contents: Contents, module: FileModule) -> dict[str, Shape]:
    """Key of the base -> shape, as far as this module tells."""
    told = {}
    weight = _weight(contents, module)
    if weight is not None:
        told[module.layer if is_bare(module.layer) else f"{module.layer}.weight"] = weight
    for part in BIASES & module.parts.keys():
        told[f"{module.layer}.bias"] = contents.spec(module.parts[part]).shape
    return told


def _weight(contents: Contents, module: FileModule) -> Shape | None:
    shape = {part: contents.spec(key).shape for part, key in module.parts.items()}
    direct = next((part for part in DIRECT if part in shape), None)
    if direct:
        return shape[direct]
    if {"up", "down"} <= shape.keys() and len(shape["up"]) > 1 and len(shape["down"]) > 1:
        return _product(shape["up"], shape["down"], shape.get("mid"))
    if {"hada_w1_a", "hada_w1_b"} <= shape.keys():
        core = shape.get("hada_t1")
        return _product(shape["hada_w1_a"][::-1] if core else shape["hada_w1_a"], shape["hada_w1_b"], core)
    left, right = (_side(shape, name) for name in ("lokr_w1", "lokr_w2"))
    if left and right:
        return (left[0] * right[0], left[1] * right[1], *right[2:])
    return None


def _product(up: Shape, down: Shape, core: Shape | None) -> Shape:
    kernel = core[2:] if core else down[2:]
    return (up[0], down[1], *kernel)


def _side(shape: dict[str, Shape], name: str) -> Shape | None:
    """Whole shape of one of LoKr's two matrices."""
    if name in shape:
        return shape[name] if len(shape[name]) > 1 else None
    a, b, core = (shape.get(part) for part in (f"{name}_a", f"{name}_b", name.replace("w", "t")))
    return None if a is None or b is None else _product(a[::-1] if core else a, b, core)
