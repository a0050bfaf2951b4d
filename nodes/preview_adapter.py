"""The weight adapter by which ComfyUI asks the engine for a merged tensor, and the putting of it on a MODEL.

One adapter per key. What ComfyUI hands over as `weight` is not the base: on a card it comes as float16, which loses what lies
below 2**-17 = 7.6e-6 (comfy/model_management.py, lora_compute_dtype). So the engine reads its base from the file, and the argument
only tells the device. The result is new each time: a LoRA behind it adds itself in place.
"""
from dataclasses import dataclass

import comfy.utils
import torch
from comfy.weight_adapter.base import WeightAdapterBase

from ..engine.errors import SourceError, Stopped
from ..engine.preview import Preview
from .handles import Dit

PREFIX = "diffusion_model."


class PreviewStoppedError(RuntimeError):
    """The stop button, while a preview was loaded. Never ComfyUI's own interrupt, a BaseException: its loader would miss it, and
    keep a base that is half patched."""


@dataclass(frozen=True)
class PreviewJob:
    """What every adapter of one preview shares; ComfyUI passes it on by reference. dit, role: what is previewed."""

    preview: Preview
    dit: Dit
    role: str

    def merge(self, key: str) -> torch.Tensor:
        """The merged tensor of ComfyUI's `key`, float32, new. Raises ordinary exceptions alone."""
        try:
            return self.preview.merged(key.removeprefix(PREFIX))
        except Stopped as stop:
            raise PreviewStoppedError("stopped while the preview was merged into the model; the base is as it was") from stop


class PreviewAdapter(WeightAdapterBase):
    """Replaces one weight by its merged one. ComfyUI rebuilds it from exactly these two attributes.

    weights: (tensors, PreviewJob). One tensor has to be there: without any, ComfyUI pins a buffer of no bytes.
    """

    name = "wan22_master_preview"

    def __init__(self, loaded_keys, weights):
        self.loaded_keys, self.weights = loaded_keys, weights

    @property
    def job(self) -> PreviewJob:
        return self.weights[1]

    def calculate_weight(self, weight, key, strength, strength_model, offset, function, intermediate_dtype=torch.float32,
                         original_weight=None) -> torch.Tensor:
        """The merged weight on the device of `weight`, in `intermediate_dtype`: paths with little memory use it as it is."""
        if (strength, strength_model, offset) != (1.0, 1.0, None):
            raise SourceError(f"{key}: expected a preview at strength 1, found {strength:g} on {strength_model:g}; a preview "
                              "cannot be scaled; change the strengths of its LoRAs, or save it first")
        return self.job.merge(key).to(device=weight.device, dtype=intermediate_dtype)


def put_on(model, job: PreviewJob):
    """A clone of `model` whose weights are the preview's.

    Parameters beside child modules (modulation) get no weight patches in ComfyUI (comfy/model_patcher.py, _load_list): they are
    merged now and replaced as objects. Raises SourceError when the MODEL lacks a key, or another node patched one before.
    """
    keys = [PREFIX + key for key in job.preview.keys]
    check_unpatched(model, keys)
    clone, adapter = model.clone(), PreviewAdapter(set(), ((torch.zeros(1),), job))
    patched, replaced = by_way(model, keys)
    missing = set(patched) - set(clone.add_patches(dict.fromkeys(patched, adapter)))
    if missing:
        raise SourceError(f"{min(missing)}: expected in the MODEL as in the dit's file, found {len(missing)} keys missing; connect "
                          "a MODEL of that very file, or none")
    for key in replaced:
        clone.add_object_patch(key, torch.nn.Parameter(job.merge(key), requires_grad=False))
    return clone


def by_way(model, keys: list[str]) -> tuple[list[str], list[str]]:
    """(keys that take weight patches, keys of parameters whose module has parameters below it)."""
    ways: dict[str, bool] = {}
    for key in keys:
        place = key.rpartition(".")[0]
        if place not in ways:
            ways[place] = is_leaf(model, place)
    return [key for key in keys if ways[key.rpartition(".")[0]]], [key for key in keys if not ways[key.rpartition(".")[0]]]


def is_leaf(model, place: str) -> bool:
    """Whether no module below `place` has parameters; a place that the model does not have counts as one."""
    try:
        module = comfy.utils.get_attr(model.model, place)
    except AttributeError:
        return True
    return all("." not in name for name, _ in module.named_parameters())


def check_unpatched(model, keys: list[str]) -> None:
    """Raise SourceError when one of these keys is patched already: a preview reads its base from the file and would drop that."""
    prior = [key for key in keys if key in model.patches or key in model.object_patches]
    if not prior:
        return
    kinds = sorted({str(getattr(patch[1], "name", "diff")) for key in prior for patch in model.patches.get(key, ())}) or ["object"]
    what = "another Merge Preview" if kinds == [PreviewAdapter.name] else f"a LoRA or merge before it ({', '.join(kinds)})"
    raise SourceError(f"merge preview: {len(prior)} weights of this MODEL are already patched by {what}, first {prior[0]}; put "
                      "that loader behind the preview, or add its LoRA to the dit with LoRA Pair and Inject")


def preview_of(model) -> PreviewJob | None:
    """The job of a MODEL whose weights are one preview's and nothing else; None when another patch is on it too."""
    found = [patch for key, patches in model.patches.items() if key.startswith(PREFIX) for patch in patches]
    jobs = {id(patch[1].job): patch[1].job for patch in found if isinstance(patch[1], PreviewAdapter)}
    if len(jobs) != 1:
        return None
    [job] = jobs.values()
    patched, replaced = by_way(model, [PREFIX + key for key in job.preview.keys])
    objects = [key for key in model.object_patches if key.startswith(PREFIX)]
    return job if len(found) == len(patched) and sorted(objects) == sorted(replaced) else None
