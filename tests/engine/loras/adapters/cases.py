"""Every adapter kind as trainers store it: tensors by suffix for a target of any shape, and what the oracle makes of them.

A case is (suffix -> tensor, change(weight, strength) -> float64 W' - W), or None for the change where the kind cannot exist on that
shape and must be refused. Numbers are float32 unless the kind is about something else; seeds differ by kind and shape.
"""

import math
import zlib

import torch
from wan22_master.tests.engine.loras.adapters import oracle

SHAPES = {  # key of the base -> shape; the second pair of `ffn.0` and `norm3` are biases
    "blocks.0.ffn.0.weight": (24, 12),
    "patch_embedding.weight": (16, 6, 1, 2, 2),
    "blocks.0.norm3.weight": (24,),
    "blocks.0.modulation": (1, 6, 12),
}
AXES = dict(zip(("2-D", "5-D", "1-D", "modulation"), SHAPES, strict=True))
BIASES = {"blocks.0.ffn.0.bias": (24,), "patch_embedding.bias": (16,), "blocks.0.norm3.bias": (24,)}


class Draw:
    """Numbers from a seed that kind and shape make."""

    def __init__(self, kind, shape):
        self.generator = torch.Generator().manual_seed(zlib.crc32(repr((kind, shape)).encode()))

    def __call__(self, *shape, size=0.3):
        return torch.randn(*shape, generator=self.generator) * size


def _dims(shape):
    return shape[0], (shape[1] if len(shape) > 1 else 1), shape[2:]


def linear(delta):
    """A delta that does not depend on the base."""
    return lambda weight, strength: strength * delta


def pair(shape, draw, suffixes=(".lora_up.weight", ".lora_down.weight"), rank=4, alpha=None):
    out, into, kernel = _dims(shape)
    up, down = draw(out, rank, *[1] * len(kernel)), draw(rank, into, *kernel)
    parts = dict(zip(suffixes, (up, down), strict=True)) | ({} if alpha is None else {".alpha": torch.tensor(alpha)})
    return parts, None if len(shape) < 2 else linear(oracle.lora(shape, up, down, alpha))


def tucker(shape, draw):
    out, into, kernel = _dims(shape)
    ones = [1] * len(kernel)
    up, mid, down = draw(out, 3, *ones), draw(3, 4, *kernel), draw(4, into, *ones)
    parts = {".lora_up.weight": up, ".lora_mid.weight": mid, ".lora_down.weight": down, ".alpha": torch.tensor(2.0)}
    return parts, None if len(shape) < 2 else linear(oracle.lora(shape, up, down, 2.0, mid))


def rank(shape, draw, rank):
    return pair(shape, draw, rank=rank, alpha=0.5)


def dora(shape, draw, axis, name=".dora_scale", vector=None):
    out, into, kernel = _dims(shape)
    parts, _ = pair(shape, draw, alpha=2.0)
    length = (out, into)[axis]
    stored = {None: (length, 1, *[1] * len(kernel)) if axis == 0 else (1, length, *[1] * len(kernel)), 1: (length,)}[vector]
    magnitude = draw(length).abs() + 0.5
    parts[name] = magnitude.reshape(stored)
    if len(shape) < 2:
        return parts, None
    delta = oracle.lora(shape, parts[".lora_up.weight"], parts[".lora_down.weight"], 2.0)
    return parts, lambda weight, strength: strength * oracle.dora(weight, delta, magnitude, axis)


def dora_peft(shape, draw):
    out, _, kernel = _dims(shape)
    parts, _ = pair(shape, draw, (".lora_B.weight", ".lora_A.weight"))
    magnitude = draw(out).abs() + 0.5
    parts[".lora_magnitude_vector"] = magnitude.reshape((1, out, *[1] * len(kernel)) if kernel else (out,))
    if len(shape) < 2:
        return parts, None
    delta = oracle.lora(shape, parts[".lora_B.weight"], parts[".lora_A.weight"])
    return parts, lambda weight, strength: strength * oracle.dora(weight, delta, magnitude, 0)


def loha(shape, draw, cores=False):
    out, into, kernel = _dims(shape)
    columns = into if cores else into * math.prod(kernel)
    w1a, w2a = (draw(3, out) if cores else draw(out, 3) for _ in "12")
    w1b, w2b = draw(3, columns), draw(3, columns)
    parts = {".hada_w1_a": w1a, ".hada_w1_b": w1b, ".hada_w2_a": w2a, ".hada_w2_b": w2b, ".alpha": torch.tensor(1.5)}
    more = {"t1": draw(3, 3, *kernel), "t2": draw(3, 3, *kernel)} if cores else {}
    parts |= {f".hada_{name}": core for name, core in more.items()}
    return parts, None if len(shape) < 2 else linear(oracle.loha(shape, w1a, w1b, w2a, w2b, 1.5, **more))


def lokr(shape, draw, left=False, right=False, core=False, alpha=1.5):
    """left, right: whether that matrix is factored; whole ones carry the alpha ai-toolkit writes, infinity in fp16."""
    out, into, kernel = _dims(shape)
    a, b = math.gcd(out, 4), math.gcd(into, 2)
    parts, names = {}, {}
    names |= {"w1a": draw(a, 1), "w1b": draw(1, b)} if left else {"w1": draw(a, b)}
    if core:
        names |= {"w2a": draw(2, out // a), "w2b": draw(2, into // b), "t2": draw(2, 2, *kernel)}
    elif right:
        names |= {"w2a": draw(out // a, 2), "w2b": draw(2, into // b * math.prod(kernel))}
    else:
        names["w2"] = draw(out // a, into // b, *kernel)
    for name, tensor in names.items():
        parts[".lokr_" + {"a": f"{name[:2]}_a", "b": f"{name[:2]}_b"}.get(name[2:], name)] = tensor
    parts[".alpha"] = torch.tensor(alpha)
    told = alpha if math.isfinite(alpha) else None
    return parts, None if len(shape) < 2 else linear(oracle.lokr(shape, **names, alpha=told))


def lokr_dora(shape, draw):
    parts, change = lokr(shape, draw, right=True)
    magnitude = draw(shape[0]).abs() + 0.5
    parts[".dora_scale"] = magnitude.reshape(-1, *[1] * max(1, len(shape) - 1))
    if change is None:
        return parts, None
    return parts, lambda weight, strength: strength * oracle.dora(weight, change(weight, 1.0), magnitude, 0)


def _rotated(blocks, rescale, alpha):
    more = {".rescale": rescale, ".alpha": None if alpha is None else torch.tensor(alpha)}
    return {".oft_blocks": blocks} | {suffix: tensor for suffix, tensor in more.items() if tensor is not None}


def oft(shape, draw, alpha=None, rescaled=False):
    blocks = draw(max(1, shape[0] // 4), min(4, shape[0]), min(4, shape[0]))
    rescale = draw(shape[0], *[1] * (len(shape) - 1)).abs() + 0.7 if rescaled else None
    parts = _rotated(blocks, rescale, alpha)
    if len(shape) < 2 or shape[0] == 1:
        return parts, None
    return parts, lambda weight, strength: oracle.oft(weight, blocks, strength, alpha or 0.0, rescale) - weight.double()


def boft(shape, draw, alpha=None, rescaled=False):
    blocks = draw(2, max(1, shape[0] // 4), 4, 4)
    rescale = draw(shape[0], *[1] * (len(shape) - 1)).abs() + 0.7 if rescaled else None
    parts = _rotated(blocks, rescale, alpha)
    if len(shape) < 2 or shape[0] == 1:
        return parts, None
    return parts, lambda weight, strength: oracle.boft(weight, blocks, strength, alpha or 0.0, rescale) - weight.double()


def oft_peft(shape, draw, shared=False):
    columns = math.prod(shape[1:])
    packed = draw(1 if shared else max(1, columns // 4), 6, size=0.1)
    if len(shape) < 2:
        return {".oft_R.weight": packed}, None
    return {".oft_R.weight": packed}, lambda weight, strength: oracle.peft_oft(weight, packed, 4, strength) - weight.double()


def glora(shape, draw, old=False):
    out, into, kernel = _dims(shape)
    one, two, three, four = draw(into, 3), draw(3, into), draw(out, 3), draw(3, into, *kernel)
    a1, a2, b1, b2 = (two, one, four, three) if old else (one, two, three, four)
    parts = {".a1.weight": a1, ".a2.weight": a2, ".b1.weight": b1, ".b2.weight": b2, ".alpha": torch.tensor(1.5)}
    if len(shape) < 2:
        return parts, None
    return parts, lambda weight, strength: oracle.glora(weight, a1, a2, b1, b2, strength, 1.5, old) - weight.double()


def ia3(shape, draw, on_input):
    learned = draw(_dims(shape)[1 if on_input else 0])
    if len(shape) > 2:
        learned = learned.reshape(1, -1, *[1] * (len(shape) - 2))
    parts = {".weight": learned, ".on_input": torch.tensor(int(on_input))}
    return parts, None if len(shape) < 2 else lambda weight, strength: strength * oracle.ia3(weight, learned, on_input)


def whole(shape, draw, suffix):
    tensor = draw(*shape)
    return {suffix: tensor}, linear(tensor.double())


def replaced(shape, draw):
    tensor = draw(*shape)
    return {".set_weight": tensor}, lambda weight, strength: strength * (tensor.double() - weight.double())


def _spelled(up, down):
    return lambda shape, draw: pair(shape, draw, (up, down), alpha=1.0)


KINDS = {
    "LoRA up/down": pair,
    "LoRA A/B": _spelled(".lora_B.weight", ".lora_A.weight"),
    "LoRA A/B bare": _spelled(".lora_B", ".lora_A"),
    "LoRA A/B default": _spelled(".lora_B.default.weight", ".lora_A.default.weight"),
    "LoRA _lora": _spelled("_lora.up.weight", "_lora.down.weight"),
    "LoRA .lora": _spelled(".lora.up.weight", ".lora.down.weight"),
    "LoRA linear_layer": _spelled(".lora_linear_layer.up.weight", ".lora_linear_layer.down.weight"),
    "LoRA rank 1": lambda shape, draw: rank(shape, draw, 1),
    "LoRA rank 30": lambda shape, draw: rank(shape, draw, 30),
    "LoCon Tucker": tucker,
    "DoRA outputs": lambda shape, draw: dora(shape, draw, 0),
    "DoRA inputs": lambda shape, draw: dora(shape, draw, 1),
    "DoRA vector out": lambda shape, draw: dora(shape, draw, 0, vector=1),
    "DoRA vector in": lambda shape, draw: dora(shape, draw, 1, vector=1),
    "DoRA PEFT": dora_peft,
    "LoHa": loha,
    "LoHa Tucker": lambda shape, draw: loha(shape, draw, cores=True),
    "LoKr whole": lambda shape, draw: lokr(shape, draw, alpha=math.inf),
    "LoKr left": lambda shape, draw: lokr(shape, draw, left=True),
    "LoKr right": lambda shape, draw: lokr(shape, draw, right=True),
    "LoKr both": lambda shape, draw: lokr(shape, draw, left=True, right=True),
    "LoKr Tucker": lambda shape, draw: lokr(shape, draw, core=True),
    "LoKr DoRA": lokr_dora,
    "OFT": oft,
    "OFT limited": lambda shape, draw: oft(shape, draw, alpha=0.05),
    "OFT rescaled": lambda shape, draw: oft(shape, draw, rescaled=True),
    "OFT PEFT": oft_peft,
    "OFT PEFT shared": lambda shape, draw: oft_peft(shape, draw, shared=True),
    "BOFT": boft,
    "BOFT limited": lambda shape, draw: boft(shape, draw, alpha=0.05, rescaled=True),
    "GLoRA": glora,
    "GLoRA old": lambda shape, draw: glora(shape, draw, old=True),
    "IA3 outputs": lambda shape, draw: ia3(shape, draw, False),
    "IA3 inputs": lambda shape, draw: ia3(shape, draw, True),
    "diff": lambda shape, draw: whole(shape, draw, ".diff"),
    "w_norm": lambda shape, draw: whole(shape, draw, ".w_norm"),
    "set_weight": replaced,
}
ADDED = [kind for kind in KINDS if not kind.startswith(("DoRA", "OFT", "BOFT", "GLoRA", "IA3", "set", "LoKr DoRA"))]


def case(kind, shape):
    """(suffix -> tensor, change or None) of one kind on one shape."""
    return KINDS[kind](shape, Draw(kind, shape))


def tolerance(kind):
    """Relative to the change; looser where a matrix is inverted."""
    return 1e-5 if kind.startswith(("OFT", "BOFT")) else 1e-6
