"""From a widget's value to a checked path: what the combos list, and nothing outside ComfyUI's model folders.

A widget's value comes from a workflow file of anybody, so each result must lie in one of the roots that `folder_paths` names.
"""
import os
from pathlib import Path

import folder_paths

from ..engine.errors import PlanError, SourceError
from ..engine.system import legal_name
from . import plan_files

NONE = "(none)"
AUTO_PAIR = "(auto pair)"
SAME_FILE = "(same file)"
CHECKPOINTS = "[checkpoints] "                     # all-in-one files, which carry a DiT beside VAE and text encoder
INDEX, GGUF = ".safetensors.index.json", ".gguf"


def diffusion_models() -> list[str]:
    """What can be opened as a model: files, each sharded set once by its index, then GGUF files, and checkpoints last.

    ComfyUI lists no GGUF, and ComfyUI-GGUF in a folder kind of its own, where it is installed: so they are looked up here.
    """
    files = _safetensors("diffusion_models")
    indexes = sorted({_index_of(name) for name in files if _is_shard(name)} - {None})
    shards = {name for name in files if _is_shard(name) and _index_of(name)}
    whole = [name for name in files if name not in shards]
    checkpoints = [CHECKPOINTS + name for name in _safetensors("checkpoints")]
    return [*sorted([*whole, *indexes]), *plan_files.gguf_names(), *checkpoints]


def loras() -> list[str]:
    return _safetensors("loras")


def model_path(value: str) -> str:
    """Path of a name from `diffusion_models()`. Raises SourceError when it is not in a model folder."""
    if value.startswith(CHECKPOINTS):
        return _resolve("checkpoints", value.removeprefix(CHECKPOINTS))
    return _resolve("diffusion_models", value, *(plan_files.GGUF_FOLDERS if value.lower().endswith(GGUF) else ()))


def lora_path(value: str) -> str:
    """Path of a name from `loras()`. Raises SourceError when it is not in a LoRA folder."""
    return _resolve("loras", value)


def inside(folder: str, path: str) -> bool:
    """True when `path` lies, with links followed, in one of the roots of a model folder."""
    return any(folder_paths.is_within_directory(root, path) for root in folder_paths.get_folder_paths(folder))


def is_model(path: str) -> bool:
    """True when `path` lies in a folder of diffusion models: what may stand beside a chosen file as its other half."""
    return any(inside(folder, path) for folder in plan_files.GGUF_FOLDERS if folder in folder_paths.folder_names_and_paths)


def save_roots() -> dict[str, str]:
    """Label -> root of `diffusion_models`; first, and named so everywhere, ComfyUI's own models/diffusion_models.

    A label is the shortest end of the path that tells the roots apart: a workflow that is passed on names no home folder.
    `folder_paths` lists `models/unet` first, or whatever extra_model_paths.yaml puts there.
    """
    own = os.path.normcase(os.path.join(folder_paths.models_dir, "diffusion_models"))
    roots = list(dict.fromkeys(folder_paths.get_folder_paths("diffusion_models")))
    roots.sort(key=lambda root: (os.path.normcase(root) != own, Path(root).name != "diffusion_models"))
    labels: dict[str, str] = {}
    for root in roots:
        parts = Path(root).parts
        ends = ("/".join(parts[-length:]) for length in range(1, len(parts) + 1))
        labels[next((end for end in ends if end not in labels), root)] = root
    return labels


def save_folder(label: str, subfolder: str) -> str:
    """Folder to write to. Raises PlanError when the label is unknown or `subfolder` is not legal or leaves its root."""
    roots = save_roots()
    if label not in roots:
        raise PlanError(f"folder {label!r}: not a root of diffusion_models here; choose one of {', '.join(roots)}")
    parts = [part for part in subfolder.strip().replace("\\", "/").split("/") if part]
    path = os.path.join(roots[label], *parts)
    climbs = ".." in parts or subfolder.strip().startswith(("/", "\\"))
    if climbs or not folder_paths.is_within_directory(roots[label], os.path.join(roots[label], *map(legal_name, parts))):
        raise PlanError(f"subfolder {subfolder!r}: expected folders inside {label}, as wan/mixes; empty means {label} itself")
    return path


def signature(path: str) -> tuple:
    """Name, size and time of a file, of all shards for a sharded one: what tells that it was replaced."""
    folder, name = os.path.split(path)
    stem = name.removesuffix(INDEX) if name.endswith(INDEX) else name.rpartition("-of-")[0].rpartition("-")[0]
    shards = sorted(Path(folder).glob(f"{_glob_escape(stem)}-*-of-*.safetensors")) if stem else []
    return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in [Path(path), *shards])


def _resolve(folder: str, name: str, *others: str) -> str:
    """others: kinds of folders that are tried when it is not in `folder`."""
    for each in (folder, *others):
        path = folder_paths.get_full_path(each, name)
        if path is not None and inside(each, path):
            return path
    raise SourceError(f"{name}: no such file in the {folder} folders; choose it again in the list")


def _safetensors(folder: str) -> list[str]:
    return [name for name in folder_paths.get_filename_list(folder) if name.lower().endswith(".safetensors")]


def _is_shard(name: str) -> bool:
    head, of, tail = name.removesuffix(".safetensors").rpartition("-of-")
    return bool(of) and tail.isdigit() and head.rpartition("-")[2].isdigit()


def _index_of(shard: str) -> str | None:
    name = shard.rpartition("-of-")[0].rpartition("-")[0] + INDEX
    return name if folder_paths.get_full_path("diffusion_models", name) else None


def _glob_escape(text: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)
