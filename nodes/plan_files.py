"""Files that a precision plan may be made of: plans, lists and calibrations in the pack's user folders, GGUF files in the model
folders. A workflow of anybody may name ../../anything, so each name must be one that the list shows."""
import os

import folder_paths

from ..engine.errors import RecipeError
from ..engine.system import legal_name

NONE = "(none)"
PLANS, CALIBRATION = "plans", "calibration"
IMATRIX = (".imatrix", ".gguf", ".dat")
ENDINGS = {PLANS: (".json", ".txt"), CALIBRATION: (".json", *IMATRIX)}
GGUF_FOLDERS = ("diffusion_models", "unet_gguf")   # the second is ComfyUI-GGUF's; the first lists no .gguf by itself


def folder_of(kind: str) -> str:
    """PLANS or CALIBRATION in ComfyUI's user folder, which an update of the pack does not touch."""
    return os.path.join(folder_paths.get_user_directory(), "default", "wan22_master", kind)


def names(kind: str, endings: tuple[str, ...] = ()) -> list[str]:
    """Files there by name; endings: of these alone."""
    folder, wanted = folder_of(kind), endings or ENDINGS[kind]
    return sorted(name for name in os.listdir(folder) if name.lower().endswith(wanted)) if os.path.isdir(folder) else []


def path_of(kind: str, name: str) -> str:
    """Path of a name from `names`. Raises RecipeError when it is no file of that folder."""
    if name not in names(kind):
        raise RecipeError(f"{name}: no such file in user/default/wan22_master/{kind}; choose it again in the list")
    return os.path.join(folder_of(kind), name)


def target(name: str) -> str:
    """Path for a plan to be written. Raises PlanError for a name that some system forbids."""
    bare = name.strip()
    os.makedirs(folder_of(PLANS), exist_ok=True)
    return os.path.join(folder_of(PLANS), legal_name(bare if bare.lower().endswith(".json") else bare + ".json"))


def gguf_names() -> list[str]:
    """GGUF files below the folders of diffusion models, by relative name, each once."""
    return sorted(_gguf_files())


def gguf_path(name: str) -> str:
    """Path of a name from `gguf_names`. Raises RecipeError."""
    found = _gguf_files()
    if name not in found:
        raise RecipeError(f"{name}: no such GGUF file in the folders of diffusion_models; choose it again in the list")
    return found[name]


def _gguf_files() -> dict[str, str]:
    roots = [root for folder in GGUF_FOLDERS if folder in folder_paths.folder_names_and_paths
             for root in folder_paths.get_folder_paths(folder)]
    found: dict[str, str] = {}
    for root in dict.fromkeys(map(os.path.abspath, roots)):
        listed, _ = folder_paths.recursive_search(root, excluded_dir_names=[".git"]) if os.path.isdir(root) else ([], {})
        for name in listed:
            if name.lower().endswith(".gguf"):
                found.setdefault(name, os.path.join(root, name))
    return found


def states(chosen: list[str]) -> tuple:
    """Size and time of each of these files, as far as they are there: changes when one was replaced."""
    found, ggufs = [], _gguf_files()
    for name in chosen:
        for path in [os.path.join(folder_of(PLANS), name), os.path.join(folder_of(CALIBRATION), name), ggufs.get(name, "")]:
            if path and os.path.isfile(path):
                status = os.stat(path)
                found.append((name, status.st_size, status.st_mtime_ns))
    return tuple(found)
