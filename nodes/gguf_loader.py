"""A GGUF file as a MODEL, by ComfyUI-GGUF's own loader: ComfyUI itself has none."""
import os

import folder_paths

from nodes import NODE_CLASS_MAPPINGS

from ..engine.errors import MergeError

LOADER, FOLDER = "UnetLoaderGGUF", "unet"          # it looks its files up there, which is diffusion_models too
HOW = "install ComfyUI-GGUF with the Manager, or save another format"


def check_loader(what: str) -> None:
    """Raise MergeError where the loader is not installed. what: asks for it."""
    if LOADER not in NODE_CLASS_MAPPINGS:
        raise MergeError(f"{what}: expected ComfyUI-GGUF, which loads GGUF files, found it not installed; {HOW}")


def load_gguf(path: str):
    """The MODEL. Raises MergeError where the loader is not installed, or does not see the file."""
    name = os.path.basename(path)
    check_loader(name)
    for root in folder_paths.get_folder_paths(FOLDER):
        if folder_paths.is_within_directory(root, path):
            relative = os.path.relpath(path, root)
            seen = folder_paths.get_full_path(FOLDER, relative)
            if seen is None or not os.path.samefile(seen, path):
                where = f"one in {os.path.basename(os.path.dirname(seen))}" if seen else "none"
                raise MergeError(f"{name}: expected it to be the file that ComfyUI-GGUF finds under this name, found {where}; "
                                 "rename one of them")
            return NODE_CLASS_MAPPINGS[LOADER]().load_unet(relative)[0]
    raise MergeError(f"{name}: expected a file in a folder of diffusion_models, where ComfyUI-GGUF looks, found another; move it")
