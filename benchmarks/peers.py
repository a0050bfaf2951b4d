"""What the quantizers are measured against, each giving suffix -> stored tensor: comfy-kitchen, 4/6, convert_to_quant.

A `Peer` has the part of a format of ours (quant/formats.py) that quantizes: measure, combine, quantize, constants. So one piece of
code runs both, whole or by bands, and comfy-kitchen decodes both.
"""
import math
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from comfy_kitchen.backends import eager
from harness import ROOT  # noqa: F401 - names the package
from safetensors.torch import load_file, save_file
from wan22_master.engine.bands import Workers, split
from wan22_master.quant.readback import decode_rows

Parts = dict[str, torch.Tensor]
KEY = "blocks.0.ffn.0.weight"                      # a name that convert_to_quant keeps from nothing


@dataclass(frozen=True)
class Peer:
    """encode(band, scale): the rows by suffix. The tensor's scale is amax / largest, stored under `suffix`; 0: it has none."""

    encode: Callable[[torch.Tensor, torch.Tensor | None], Parts]
    largest: float = 0.0
    suffix: str = "_scale"

    @property
    def measure(self):
        """amax as comfy_kitchen/tensor/nvfp4.py takes it."""
        return (lambda band: torch.amax(band.abs())) if self.largest else None

    def combine(self, stats: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(stats).amax() / self.largest

    def quantize(self, band: torch.Tensor, scale: torch.Tensor | None, scratch: torch.Tensor | None = None) -> Parts:
        return self.encode(band, scale)

    def constants(self, scale: torch.Tensor | None) -> Parts:
        return {self.suffix: scale} if self.largest else {}


def _pair(found: tuple[torch.Tensor, torch.Tensor]) -> Parts:
    return {"": found[0], "_scale": found[1]}


def _w4a8(band: torch.Tensor, scale: None) -> Parts:
    packed, s_rel, s_channel, _, codebook = eager.quantize_w4a8_int8_weight(band)
    return {"": packed, "_s_rel": s_rel, "_s_channel": s_channel, "_codebook": codebook}


def four_six(band: torch.Tensor, scale: torch.Tensor) -> Parts:
    """arXiv 2512.02010: each block's amax lies on the 6 or on the 4, whichever leaves less squared error; the tensor's scale is
    amax / (256 * 6), so that a block on the 4 needs 384 of E4M3's 448."""
    blocks, grid, best = band.view(len(band), -1, 16), band.new_tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6]), None
    for target in (6.0, 4.0):
        rounded = (blocks.abs().amax(2) / target / scale).to(torch.float8_e4m3fn)
        total = (scale * rounded.float()).unsqueeze(2)
        size = torch.where(total > 0, blocks.abs() / total, 0.0)
        step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
        near = ((size / step).round_() * step).clamp_(max=6.0)
        error = ((near - size) * total).square_().sum(2)
        if best is None:
            best = near, rounded, error
        else:
            less = error < best[2]
            best = torch.where(less.unsqueeze(2), near, best[0]), torch.where(less, rounded.float(), best[1].float()), error
    codes = torch.searchsorted(grid, best[0]).to(torch.uint8) | (blocks < 0).to(torch.uint8) << 3
    high, low = codes.view(len(band), -1, 2).unbind(2)
    swizzled = eager.quantization.to_blocked(best[1].to(torch.float8_e4m3fn), flatten=False)
    return {"": high << 4 | low, "_scale": swizzled}


# Largest values: OCP OFP8 table 1 (448, 57344), times E2M1's 6 for nvfp4, and 127 of INT8.
KITCHEN = {
    "float8_e4m3fn": Peer(lambda band, scale: {"": eager.quantize_per_tensor_fp8(band, scale)}, 448.0),
    "float8_e5m2": Peer(lambda band, scale: {"": eager.quantize_per_tensor_fp8(band, scale, torch.float8_e5m2)}, 57344.0),
    "mxfp8": Peer(lambda band, scale: _pair(eager.quantize_mxfp8(band))),
    "nvfp4": Peer(lambda band, scale: _pair(eager.quantize_nvfp4(band, scale)), 2688.0, "_scale_2"),
    "int8_tensorwise tensor": Peer(lambda band, scale: {"": eager.quantize_int8_tensorwise(band, scale)[0]}, 127.0),
    "int8_tensorwise row": Peer(lambda band, scale: _pair(eager.quantize_int8_rowwise(band))),
    "int8_tensorwise convrot": Peer(lambda band, scale: _pair(eager.quantize_int8_convrot_weight(band, 256))),
    "convrot_w4a4": Peer(lambda band, scale: _pair(eager.quantize_convrot_w4a4_weight(band))),
    "asym_w4a8_int8": Peer(_w4a8),
}
FOUR_SIX = Peer(four_six, 1536.0, "_scale_2")


def whole(form, weight: torch.Tensor) -> Parts:
    """All that a format or peer stores, quantized in one call on the whole tensor."""
    stats = form.combine([form.measure(weight)]) if form.measure else None
    return {**form.quantize(weight, stats), **form.constants(stats)}


def room_for(form, shape: tuple[int, ...]) -> Parts:
    """Empty tensors for what has rows. form: ours."""
    return {suffix: torch.empty(size, dtype=dtype) for suffix, (size, dtype) in form.outputs(shape).items()
            if suffix not in form.CONSTANTS}


def in_bands(form, weight: torch.Tensor, workers: Workers, stored: Parts) -> Parts:
    """As a job does it: bands in threads of one's own, their rows copied to `stored`, of `room_for`. form: ours or a peer."""
    bands, room = split(weight.shape), threading.local()
    stats = form.combine(workers.map(lambda rows: form.measure(weight[slice(*rows)]), bands)) if form.measure else None

    def quantize(rows: tuple[int, int]) -> None:
        band = weight[slice(*rows)]
        if not hasattr(room, "scratch"):
            room.scratch = torch.empty(bands[0][1], weight.shape[1])
        for suffix, part in form.quantize(band, stats, room.scratch[:len(band)]).items():
            if suffix in stored:
                stored[suffix][rows[0]:rows[0] + len(part)] = part

    workers.map(quantize, bands)
    return {**stored, **form.constants(stats)}


def decode(form, shape: tuple[int, int], parts: Parts, rows: tuple[int, int]) -> torch.Tensor:
    """Rows [first, stop) of what a tool stored, float32, by comfy-kitchen. form: ours of the same format."""
    return decode_rows(form, shape, list(range(*rows)), lambda suffix, first, stop: parts[suffix][slice(first, stop)]
                       if parts[suffix].dim() else parts[suffix])


def relative_error(form, weight: torch.Tensor, parts: Parts, workers: Workers) -> float:
    """||decoded - weight|| / ||weight||, summed in float64."""
    def of_band(rows: tuple[int, int]) -> float:
        return (decode(form, weight.shape, parts, rows) - weight[slice(*rows)]).double().square().sum().item()

    return math.sqrt(sum(workers.map(of_band, split(weight.shape))) / weight.double().square().sum().item())


def convert_to_quant(program: Path, weight: torch.Tensor, *switches: str) -> Parts:
    """One layer through its command line, on the CPU. weight: values of BF16."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "one.safetensors", Path(folder) / "out.safetensors"
        save_file({KEY: weight.bfloat16()}, source)
        command = [program, "-i", source, "-o", target, "--comfy_quant", "--device", "cpu", "--manual_seed", "0", *switches]
        said = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "2"}, capture_output=True, text=True)
        if said.returncode or not target.exists():
            raise SystemExit(f"{program} {' '.join(switches)}: exit {said.returncode}\n{said.stderr[-2000:]}")
        found = load_file(target)
    return {key.removeprefix(KEY): tensor for key, tensor in found.items() if key.startswith(KEY)}
