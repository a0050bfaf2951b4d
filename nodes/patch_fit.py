"""Which patches of a MODEL do not fit their weights: ComfyUI only logs them and samples without them.

Asked before anything is read, of ComfyUI's own comfy.lora.calculate_weight: on torch's meta device it computes shapes alone.
"""
from collections import defaultdict
from dataclasses import dataclass

import comfy.lora
import torch

from ..engine.errors import SourceError
from .complaints import Listening
from .preview_adapter import PreviewAdapter

NO_ANSWER = "meta"                                 # in what torch says of a step that needs numbers: the shapes alone do not tell


@dataclass(frozen=True)
class Misfit:
    """One patch that ComfyUI leaves out. shapes: of the weight and of the patch, in words."""

    key: str
    kind: str
    shapes: str


def misfits(patches: dict[str, list], shapes: dict[str, tuple[int, ...]]) -> list[Misfit]:
    """Patches that do not fit. patches: key -> ComfyUI's patches of it; shapes: key -> shape of its weight."""
    found = []
    for key, each in patches.items():
        weight = torch.empty(shapes[key], device=NO_ANSWER)
        for patch in each:
            fits, weight = _tried(patch, weight, key)
            found += [] if fits else [Misfit(key, label(patch), f"weight {shapes[key]}, patch {_shapes(patch[1])}")]
    return found


def label(patch: tuple) -> str:
    """What a patch is, and its strength: `lora at 0.8`."""
    value = patch[1]
    kind = getattr(value, "name", value[0] if isinstance(value, tuple) and len(value) == 2 else "diff")
    return f"{'a merged model' if isinstance(value, list) else kind} at {patch[0]:g}"


def check_some_fit(found: list[Misfit], counts: dict[str, int], name: str) -> None:
    """Raise SourceError when of all patches of one kind none fits. counts: kind -> patches; name: the MODEL's."""
    for kind, these in grouped(found).items():
        if len(these) == counts[kind]:
            none = "the only patch" if counts[kind] == 1 else f"none of {counts[kind]} patches"
            raise SourceError(f"{name}: {none} of {kind} fits, first {these[0].key}: {these[0].shapes}; it was made for a model of "
                              "another size or task, and ComfyUI samples without it; take that node away, or choose one for this "
                              "model")


def told(found: list[Misfit], counts: dict[str, int]) -> list[str]:
    """A line for each kind of which some patches do not fit."""
    return [f"{len(these)} of {counts[kind]} patches of {kind} do not fit and are left out, as when ComfyUI samples, first: "
            f"{these[0].key}: {these[0].shapes}" for kind, these in grouped(found).items()]


def grouped(found: list[Misfit]) -> dict[str, list[Misfit]]:
    """Kind -> its misfits."""
    kinds = defaultdict(list)
    for each in found:
        kinds[each.kind].append(each)
    return dict(kinds)


def _tried(patch: tuple, weight: torch.Tensor, key: str) -> tuple[bool, torch.Tensor]:
    """(whether the patch fits, the weight after it): shapes only."""
    value, said = patch[1], []
    if isinstance(value, PreviewAdapter):          # it would merge the tensor; the preview was checked when it was made
        return True, weight
    if isinstance(value, list):                    # another model's weight and its patches
        return tuple(value[0][0].shape) == tuple(weight.shape), weight
    try:
        with Listening(said):
            weight = comfy.lora.calculate_weight([patch], weight, key, intermediate_dtype=torch.float32)
    except RuntimeError as cause:                  # sampling would fail of it too
        said.append(f"{key}: {cause}")
    said = [line for line in said if key in line]  # all that ComfyUI says of a patch names it; other warnings are none of ours
    return not said or any(NO_ANSWER in line for line in said), weight


def _shapes(value: object) -> str:
    """Shapes of a patch's tensors, in words."""
    parts = getattr(value, "weights", None) or (value[1] if isinstance(value, tuple) and len(value) == 2 else value)
    parts = parts[0] if isinstance(parts, list) else parts
    shapes = [str(tuple(each.shape)) for each in parts if isinstance(each, torch.Tensor)]
    return " and ".join(shapes) or "unknown"
