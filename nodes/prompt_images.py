"""Start images for a list of prompts: files of a folder below ComfyUI's input folder, or a batch that is connected."""
import hashlib
import os
from collections.abc import Iterable
from dataclasses import replace
from types import MappingProxyType

import folder_paths
import torch

from nodes import LoadImage

from ..engine.calibration.prompt_file import PromptFile
from ..engine.calibration.prompt_pairs import BY_OPTION, Pairing, pair
from ..engine.errors import RecipeError
from ..engine.system import hash_file


class FolderImages:
    """Image files of one folder, not of those in it, and others that lines state. folder: relative to ComfyUI's input folder; "."
    is that folder itself. stated: paths as lines have them; known: those of them that are there -> name, relative to the folder."""

    are_files = True

    def __init__(self, folder: str, stated: Iterable[str] = ()):
        root = folder_paths.get_input_directory()
        self.folder, self._path = folder, os.path.join(root, folder)
        if not folder_paths.is_within_directory(root, self._path):   # a workflow of anybody may name ../../anything
            raise RecipeError(f"prompt list: image_folder: expected a folder inside ComfyUI's input folder, found {folder!r}")
        if not os.path.isdir(self._path):
            raise RecipeError(f"prompt list: image_folder: no folder {folder!r} in ComfyUI's input folder; make it, or correct it")
        names = set(self.names)
        self.known = {path: name for path in stated if path not in names and (name := self._stated(root, path))}

    @property
    def looked(self) -> str:
        """Where images are looked for, in words."""
        if os.path.normpath(self.folder) == ".":
            return "ComfyUI's input folder, by path and by name"
        return f"ComfyUI's input folder by path, nor in its folder {self.folder} by name"

    @property
    def names(self) -> list[str]:
        files = [name for name in os.listdir(self._path) if os.path.isfile(os.path.join(self._path, name))]
        return folder_paths.filter_files_content_types(files, ["image"])

    def digest(self, name: str) -> str:
        """SHA-256 of the file."""
        return hash_file(self._inside(name))

    def load(self, name: str) -> torch.Tensor:
        """(1, height, width, 3), as ComfyUI's Load Image has it; the first picture of an animated one."""
        self._inside(name)
        return LoadImage().load_image(os.path.join(self.folder, name))[0][:1]

    def states(self) -> tuple:
        """Changes when an image was added, taken away or replaced."""
        found = ((name, os.stat(self._inside(name))) for name in sorted({*self.names, *self.known.values()}))
        return tuple((name, status.st_size, status.st_mtime_ns) for name, status in found)

    def _stated(self, root: str, path: str) -> str | None:
        """Name of the image that lies at that path in ComfyUI's input folder; None for none there, or one outside of it."""
        full = os.path.join(root, path.replace("\\", "/"))
        if not folder_paths.is_within_directory(root, full) or not os.path.isfile(full):
            return None
        if not folder_paths.filter_files_content_types([full], ["image"]):
            return None
        return os.path.relpath(full, self._path).replace(os.sep, "/")

    def _inside(self, name: str) -> str:
        path = os.path.join(self._path, name)
        if not folder_paths.is_within_directory(folder_paths.get_input_directory(), path):   # a link may lead out
            raise RecipeError(f"{name}: expected an image inside ComfyUI's input folder, found a link out of it; copy it")
        return path


class BatchImages:
    """Images of one tensor (number, height, width, channels), called image 1, image 2 and so on."""

    are_files = False
    known = MappingProxyType({})                   # whatever lines state: its images have no names
    looked = "the images that are connected"

    def __init__(self, batch: torch.Tensor):
        self._images = {f"image {place}": batch[place - 1:place] for place in range(1, len(batch) + 1)}

    @property
    def names(self) -> list[str]:
        return list(self._images)

    def digest(self, name: str) -> str:
        """SHA-256 of shape and values."""
        image = self._images[name].detach().to("cpu", torch.float32).contiguous()
        return hashlib.sha256(repr(tuple(image.shape)).encode() + image.numpy().tobytes()).hexdigest()

    def load(self, name: str) -> torch.Tensor:
        """(1, height, width, channels), a view of the batch."""
        return self._images[name]


Images = FolderImages | BatchImages


def images_for(found: PromptFile, batch: torch.Tensor | None, folder: str) -> Images | None:
    """Where start images come from; None when nothing is connected, no folder is named, and no line states one."""
    if batch is not None and folder.strip():
        raise RecipeError(f"prompt list: expected images or image_folder, found both; empty image_folder ({folder!r}), or take "
                          "the link off images")
    if batch is not None:
        return BatchImages(batch)
    stated = [line.image for line in found.lines if line.image]
    return FolderImages(folder.strip() or ".", stated) if folder.strip() or stated else None


def paired(found: PromptFile, images: Images, way: str, folder: str) -> Pairing:
    """`pair`; without a folder's name only what lines state is taken of ComfyUI's input folder, which is full of other things."""
    whole = not images.are_files or folder.strip()
    made = pair(found, images.names, way if whole else BY_OPTION, are_files=images.are_files, known=images.known)
    return replace(made, looked=images.looked)
