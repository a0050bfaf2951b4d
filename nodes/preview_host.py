"""The MODEL that a merge is put on: the file it is of, whether it can show the merge, and the merge that its weights come from."""
import os
import weakref

import comfy.sd
import torch
from comfy.quant_ops import QuantizedTensor

from ..engine.bases.gguf_header import is_gguf
from ..engine.errors import RecipeError, SourceError
from ..engine.jobs.plan import Plan
from ..engine.preview import Preview
from . import paths
from .stored_weight import kind_of

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_bases: weakref.WeakValueDictionary = weakref.WeakValueDictionary()   # file as it was -> MODEL, while a preview of it is alive


def open_preview(plan: Plan, role: str, **options) -> Preview:
    """The preview of one expert; it closes the plan when nobody needs it any more, or at once when it cannot be made."""
    try:
        return Preview(plan, role, **options)
    except BaseException:
        plan.__exit__()
        raise


def is_in_parts(path: str) -> bool:
    """Whether it is a model of several files, a folder or an index, which ComfyUI cannot load as a MODEL."""
    return os.path.isdir(path) or path.endswith(paths.INDEX)


def path_of(dit, expert: str) -> str:
    """File of one expert. Raises RecipeError when it is not loaded, SourceError when ComfyUI cannot load it as one file."""
    found = dict(dit.experts)
    if expert not in found:
        loaded = "one file; choose model" if set(found) == {"model"} else f"{' and '.join(found)}; choose that"
        raise RecipeError(f"merge preview: expert is {expert}, but loaded is {loaded}")
    if is_in_parts(found[expert]):
        raise SourceError(f"{os.path.basename(found[expert])}: a model in several files, which ComfyUI cannot load as a MODEL; "
                          "save it as BF16 first, without LoRAs, and preview on that file")
    return found[expert]


def base_of(path: str):
    """The base at `path` as a MODEL, the one that an earlier preview still holds if there is one.

    Raises SourceError for a GGUF file: ComfyUI itself loads none, and ComfyUI-GGUF's MODEL keeps its weights in their blocks, where
    no merge can be put.
    """
    if is_gguf(path):
        raise SourceError(f"{os.path.basename(path)}: expected a file that ComfyUI loads as a MODEL, found a GGUF file; save the "
                          "merge and load what was saved (a GGUF with ComfyUI-GGUF's Unet Loader), or take the bf16 file as base")
    state = os.stat(path)
    known = (os.path.realpath(path), state.st_size, state.st_mtime_ns)
    model = _bases.get(known)
    if model is None:
        _bases[known] = model = comfy.sd.load_diffusion_model(path)
    return model


def file_of(model) -> str | None:
    """Path of the file that a MODEL was loaded from; None when its loader does not tell."""
    _, arguments = (getattr(model, "cached_patcher_init", None) or (None, ()))[:2]
    return arguments[0] if arguments and isinstance(arguments[0], str) else None


def check_host(model, path: str, *, approximate: bool) -> None:
    """Raise SourceError when the preview on this MODEL would not show what is saved."""
    if approximate:
        return
    file = file_of(model)
    if file is None or not os.path.exists(file) or not os.path.samefile(file, path):
        found = "a MODEL whose loader names no file" if file is None else os.path.basename(file)
        raise SourceError(f"merge preview: expected a MODEL of {os.path.basename(path)}, found {found}; connect Load Diffusion "
                          "Model of that file, or nothing")
    found = quantized_weight(model)
    if found is not None:
        name, held = found
        raise SourceError(f"merge preview: {name}: expected 16 or 32-bit weights, found {held}; ComfyUI would round the merge "
                          "to them again; take the bf16 or fp16 file with weight_dtype default, or turn approximate on")


def quantized_weight(model) -> tuple[str, str] | None:
    """Name and format of a weight of the MODEL that is held in 8 bit or less; None when there is none."""
    for name, weight in model.model.named_parameters():
        if isinstance(weight, QuantizedTensor) or getattr(weight, "tensor_type", None) is not None or weight.dtype in FP8:
            return name, kind_of(weight)
    return None
