"""Any ComfyUI MODEL as a base for the engine: its weights with its patches, one tensor at a time, float32.

    final = patches(dequantized base), in float32 by ComfyUI's own comfy.lora.calculate_weight; rounded once, by the writer
Nothing is patched, loaded or moved: the walk only reads. ComfyUI's own calls for this fail with loaded, quantized and GGUF models.
"""
import os
import secrets
import threading
from collections import Counter

import comfy.lora
import comfy.utils
import torch

from ..engine.bases.variant import detect
from ..engine.errors import SourceError
from ..engine.header import read_header
from ..engine.specs import TensorSpec
from .bakeable import PREFIX, check_bakeable
from .complaints import Listening
from .model_handle import AS_INTENDED, ModelDit
from .preview import file_of
from .preview_adapter import is_leaf
from .stored_weight import base_weight, dtype_of, is_lossy, kind_of, to_float32

INPUT_SCALES = ("input_scale", "pre_quant_scale")  # parameters of a quantized layer that are no weights (comfy/ops.py)


class ModelSource:
    """Implements `engine.source.Source` over a ModelPatcher.

    It has no stable identity: patches cannot be compared, so nothing of it is resumed or remembered.
    Raises SourceError for what cannot be baked, and for a MODEL that is no Wan model.
    """

    def __init__(self, handle: ModelDit):
        model = handle.model
        check_bakeable(model)
        self.model, self.path = model, handle.name
        self.metadata = _metadata(model)
        self.left_out: dict[str, int] = {}
        names = [name for name, _ in model.model.named_parameters() if name.startswith(PREFIX) and not name.endswith(INPUT_SCALES)]
        weights = {name.removeprefix(PREFIX): base_weight(model, name) for name in names}
        self._specs = {key: TensorSpec(tuple(weight.shape), dtype_of(weight)) for key, weight in weights.items()}
        self.kinds = Counter(kind_of(weight) for weight in weights.values())
        lossy = [kind_of(weight) for weight in weights.values() if is_lossy(weight)]
        self.lossy = lossy[0] if lossy else None
        patched = [key for key in weights if PREFIX + key in model.patches]
        skipped = [key for key in patched if handle.ways != AS_INTENDED and not is_leaf(model, PREFIX + key.rpartition(".")[0])]
        self.skipped, self._patched = skipped, set(patched) - set(skipped)
        self.name = " + ".join([handle.name, *self._patch_kinds()])   # as the base in the file's header: its LoRAs have no names
        self.complaints: list[str] = []
        self._token, self._lock = secrets.token_hex(16), threading.Lock()
        self._held: tuple[str, torch.Tensor] = ("", torch.empty(0))

    def keys(self) -> list[str]:
        return list(self._specs)

    def spec(self, key: str) -> TensorSpec:
        return self._specs[key]

    def nbytes(self, key: str) -> int:
        return self._specs[key].nbytes

    def identity(self) -> dict:
        """Differs from that of every other source, so that no earlier work is taken for this MODEL's."""
        return {"files": [{"name": self.path, "token": self._token}]}

    def read(self, key: str, rows: tuple[int, int] | None = None, out: torch.Tensor | None = None) -> torch.Tensor:
        """As `stored.StoredTensors.read`: rows [start, stop), or all; float32 on the CPU, new, or `out` overwritten.

        The whole tensor is computed at the first call and held until another key is asked for. Any thread may call.
        """
        with self._lock:
            if self._held[0] != key:
                self._held = ("", torch.empty(0))  # the old one goes before the new one comes
                with torch.inference_mode():
                    self._held = (key, self._final(PREFIX + key))
            whole = self._held[1]
        band = whole if rows is None else whole[rows[0]:rows[1]]
        return band.clone() if out is None else out.copy_(band)

    def advise(self, key: str, rows: tuple[int, int] | None = None) -> None:
        """Nothing to read ahead: the weights are ComfyUI's, in memory or mapped by it."""

    def close(self) -> None:
        """Let go of the tensor that is held; the MODEL stays."""
        self._held = ("", torch.empty(0))

    def describe(self) -> list[str]:
        """Lines about what is baked: how the base is stored, what is patched, by what, what is left out."""
        stored = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
        lines = [f"MODEL of {self.path}: {len(self._specs)} tensors ({stored}), {len(self._patched)} patched"]
        lines += [f"  {kind}" for kind in self._patch_kinds()]
        if any(kind.startswith("GGUF") for kind in self.kinds):
            lines.append("  GGUF weights are decoded in float32; ComfyUI-GGUF samples them in 16 bit, one rounding further off")
        if self.skipped:
            lines.append(f"  as sampled: ComfyUI does not apply the patches of {len(self.skipped)} weights, nor are they saved: "
                         f"{', '.join(self.skipped)}; choose as intended to save them")
        return [*lines, "  a MODEL has no identity: stopped, its save starts over, and it is saved again at each run"]

    def _patch_kinds(self) -> list[str]:
        found = [patch for key in self._patched for patch in self.model.patches[PREFIX + key]]
        kinds = Counter(f"{_kind(patch[1])} at {patch[0]:g}" for patch in found)
        return [f"{count} patches of {kind}" for kind, count in sorted(kinds.items())]

    def _final(self, name: str) -> torch.Tensor:
        weight = to_float32(base_weight(self.model, name))
        if name.removeprefix(PREFIX) in self._patched:
            with Listening(self.complaints):
                weight = comfy.lora.calculate_weight(self.model.patches[name], weight, name, intermediate_dtype=torch.float32)
            weight = weight.to("cpu", torch.float32)
        place, _, last = name.rpartition(".")
        smoothing = getattr(comfy.utils.get_attr(self.model.model, place), "pre_quant_scale", None) if last == "weight" else None
        if smoothing is not None:                  # multiplies the layer's input (comfy/ops.py, Linear.forward): W (s x) = (W s) x
            weight = weight * smoothing.detach().to("cpu", torch.float32)[None, :]
        expected = self._specs[name.removeprefix(PREFIX)].shape
        if tuple(weight.shape) != expected:
            raise SourceError(f"{name}: expected shape {expected}, its patches make it {tuple(weight.shape)}; a patch of another "
                              "model is on it, take that node away")
        return weight.contiguous()


def open_model(handle: ModelDit) -> ModelSource:
    """A source that would be detected, once saved, as what ComfyUI runs now. Raises SourceError where it would not."""
    source = ModelSource(handle)
    runs, saved = type(handle.model.model.model_config).__name__, detect(source).comfy_class
    if runs != saved:
        raise SourceError(f"{source.name}: runs as {runs}, but its weights alone would be loaded as {saved}; only its file's "
                          "header tells them apart; use a loader that reads a .safetensors file")
    return source


def sources_of(dit) -> dict[str, ModelSource]:
    """Role -> source, for `plan_recipe`, of what a job carries: none for a dit of files."""
    return {"model": open_model(dit)} if isinstance(dit, ModelDit) else {}


def bake_lines(sources: dict[str, ModelSource]) -> list[str]:
    """What ComfyUI complained of while it applied the patches: those were left out, as they are when it samples."""
    return [f"note: ComfyUI: {line}" for source in sources.values() for line in dict.fromkeys(source.complaints)]


def model_name(model) -> str:
    """What to call a MODEL: its file, or what ComfyUI takes it for."""
    return os.path.basename(file_of(model) or type(model.model.model_config).__name__)


def _metadata(model) -> dict[str, str]:
    """`config` of the file the MODEL was loaded from: ComfyUI's detection reads it, and the weights alone do not tell it."""
    path = file_of(model)
    if path is None or not path.lower().endswith(".safetensors") or not os.path.isfile(path):
        return {}
    return {key: value for key, value in read_header(path).metadata.items() if key == "config"}


def _kind(patch: object) -> str:
    if isinstance(patch, list):
        return "a merged model"
    return str(getattr(patch, "name", patch[0] if isinstance(patch, tuple) and len(patch) == 2 else "diff"))
