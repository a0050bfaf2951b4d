"""What the loader of a MODEL tells of it: its name, its settings, and which expert it is. The weights tell none of these."""
import os

from ..engine.bases.roles import Role, role_of
from ..engine.header import read_header
from .preview_adapter import PREFIX, PreviewAdapter
from .preview_host import file_of


def role_of_model(model) -> Role:
    """high_noise, low_noise or None, and what that rests on. Of models merged by other nodes the first one's file counts."""
    previews = {patch[1].job.role for key, patches in model.patches.items() if key.startswith(PREFIX) for patch in patches
                if isinstance(patch[1], PreviewAdapter)}
    if len(previews) == 1:
        [role] = previews
        return Role(None if role == "model" else role, "the Merge Preview on it")
    path = file_of(model)
    return Role(None, "its loader names no file") if path is None else role_of(path, metadata_of(path))


def model_name(model) -> str:
    """What to call a MODEL: its file, or what ComfyUI takes it for."""
    return os.path.basename(file_of(model) or type(model.model.model_config).__name__)


def config_of(model) -> dict[str, str]:
    """`config` of the file the MODEL was loaded from: ComfyUI's detection reads it, and the weights alone do not tell it."""
    path = file_of(model)
    return {} if path is None else {key: value for key, value in metadata_of(path).items() if key == "config"}


def metadata_of(path: str) -> dict[str, str]:
    """Metadata in the header of a .safetensors file that is there; none of any other."""
    return read_header(path).metadata if path.lower().endswith(".safetensors") and os.path.isfile(path) else {}
