"""What a MODEL is, for a session of calibration: its base, what is merged into it, and the format that its weights run in.

A Merge Preview knows its recipe; a file of ours embeds it; any other file is a base. LoRAs that another node put on top have
neither name nor hash left: they are told apart by a digest of what they patch. Where no loader names a file, as ComfyUI-GGUF's, the
graph is asked for it, and else the weights themselves are the base.
"""
import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import folder_paths
import torch

from ..engine.calibration.subject import BARE, FLOATS, Subject, subject_of, subject_of_file
from ..engine.hashes import HashCache
from .calibration_facts import running
from .model_role import model_name
from .preview_adapter import PREFIX, PreviewAdapter, PreviewJob
from .preview_host import file_of
from .recipes import reports_folder
from .stored_weight import kind_of

SAMPLE = 64                                        # numbers of a tensor that a digest looks at: it tells LoRAs apart, no more
PLAIN = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
GGUF, FOLDERS = ".gguf", ("unet_gguf", "unet", "diffusion_models")   # ComfyUI-GGUF looks in the first two
LONGEST_WAY = 50                                   # nodes between this one and its loader


def subject_of_model(model, name: str) -> Subject:
    """name: of the input that the MODEL came by, for the graph. Raises HeaderError, SourceError for a file that cannot be read."""
    jobs = {id(patch[1].job): patch[1].job for patch in _patches(model) if isinstance(patch[1], PreviewAdapter)}
    path = file_of(model) or gguf_file(name)
    if len(jobs) == 1:
        found = _of_preview(next(iter(jobs.values())))
    elif path is not None and os.path.isfile(path):
        known = HashCache(reports_folder()).known_sha256(path)
        found = subject_of_file(path, {} if known is None else {path: known})
    else:
        found = Subject(f"sample:{_digest_of_weights(model)}", model_name(model))
    held = stored_as(model)
    ran = found.stored_as if held in FLOATS.values() and found.stored_as in FLOATS.values() else held
    return _with_patches(replace(found, stored_as=ran), model)


def _of_preview(job: PreviewJob) -> Subject:
    return subject_of(job.preview.expert, job.preview.plan.recipe, stored_as=job.preview.output.format)


def stored_as(model) -> str:
    """The format that most block linears are held in."""
    kinds = Counter(kind_of(weight) for key, weight in model.model.named_parameters()
                    if key.startswith(PREFIX + "blocks.") and key.endswith(".weight") and weight.dim() == 2)
    held = kinds.most_common(1)[0][0] if kinds else ""
    return PLAIN.get(held, held.removeprefix("GGUF "))


def _with_patches(found: Subject, model) -> Subject:
    """With what other nodes put on its weights, each strength and kind of patch as one entry."""
    groups: dict[tuple[str, float], list[str]] = {}
    for key in sorted(key for key in model.patches if key.startswith(PREFIX)):
        for strength, value, *_ in model.patches[key]:
            if not isinstance(value, PreviewAdapter):
                kind = str(getattr(value, "name", "") or value[0])
                groups.setdefault((kind, float(strength)), []).append(key + _digest_of_patch(value))
    if not groups:
        return found
    loras = [(f"{kind} of another node on {len(told)} weights", hashlib.sha256("\n".join(told).encode()).hexdigest(), strength)
             for (kind, strength), told in sorted(groups.items())]
    recipe = hashlib.sha256(repr((found.recipe, found.loras, loras)).encode()).hexdigest()
    return replace(found, loras=(*found.loras, *loras), recipe=recipe, itself=BARE)


def _patches(model) -> list:
    return [patch for key, patches in model.patches.items() if key.startswith(PREFIX) for patch in patches]


def _digest_of_patch(value) -> str:
    """value: a weight adapter, or ComfyUI's pair of a kind and its tensors."""
    held = getattr(value, "weights", None) or (value[1] if isinstance(value, tuple) else ())
    return "".join(_digest(each) if isinstance(each, torch.Tensor) else f" {each}" for each in held
                   if each is None or isinstance(each, torch.Tensor | int | float))


def _digest_of_weights(model) -> str:
    """Of names, shapes and first values of all weights."""
    weights = {key: weight for key, weight in model.model.named_parameters() if key.startswith(PREFIX)}
    told = [f"{key} {kind_of(weight)} {_digest(weight)}" for key, weight in weights.items()]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def _digest(tensor: torch.Tensor) -> str:
    held = getattr(tensor, "_qdata", tensor).detach()   # of a quantized one, its codes
    values = torch.Tensor.reshape(held.as_subclass(torch.Tensor), (-1,))[:SAMPLE].to("cpu").contiguous()
    return f"{tuple(held.shape)} {hashlib.sha256(values.view(torch.uint8).numpy().tobytes()).hexdigest()}"


def gguf_file(name: str) -> str | None:
    """Path of the GGUF file at the beginning of this node's input `name`, by the graph that runs; None where it does not tell."""
    found = running()
    if found is None:
        return None
    graph, node = found
    for _ in range(LONGEST_WAY):
        inputs: Mapping = graph.get(node, {}).get("inputs", {})
        files = [value for value in inputs.values() if isinstance(value, str) and value.lower().endswith(GGUF)]
        if files:
            return _path(files[0])
        link = inputs.get(name)
        if not isinstance(link, list):
            return None
        node, name = str(link[0]), "model"
    return None


def _path(file: str) -> str | None:
    """Of a name in a loader's widget, in the folders that it looks in."""
    for kind in FOLDERS:
        path = folder_paths.get_full_path(kind, file) if kind in folder_paths.folder_names_and_paths else None
        if path is not None:
            return path
    return None
