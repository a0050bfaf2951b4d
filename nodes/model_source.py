"""Any ComfyUI MODEL as a base for the engine: its weights with its patches, one tensor at a time, float32.

    final = patches(dequantized base), in float32 by ComfyUI's own comfy.lora.calculate_weight; rounded once, by the writer
Nothing is patched, loaded or moved: the walk only reads. ComfyUI's own calls for this fail with loaded, quantized and GGUF models.
"""
import secrets
import threading
from collections import Counter

import comfy.lora
import comfy.utils
import torch

from ..engine.bases.variant import detect
from ..engine.errors import SourceError
from ..engine.specs import TensorSpec
from . import patch_fit
from .bakeable import PREFIX, check_bakeable
from .complaints import Listening
from .model_handle import AS_INTENDED, ModelDit
from .model_role import config_of
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
        self.metadata = config_of(model)
        self.left_out: dict[str, int] = {}
        names = [name for name, _ in model.model.named_parameters() if name.startswith(PREFIX) and not name.endswith(INPUT_SCALES)]
        weights = {name.removeprefix(PREFIX): base_weight(model, name) for name in names}
        self._specs = {key: TensorSpec(tuple(weight.shape), dtype_of(weight)) for key, weight in weights.items()}
        self.kinds = Counter(kind_of(weight) for weight in weights.values())
        lossy = [kind_of(weight) for weight in weights.values() if is_lossy(weight)]
        self.lossy = lossy[0] if lossy else None
        self.formats = {key: kind_of(weight) for key, weight in weights.items() if is_lossy(weight)}
        patched = [key for key in weights if PREFIX + key in model.patches]
        skipped = [key for key in patched if handle.ways != AS_INTENDED and not is_leaf(model, PREFIX + key.rpartition(".")[0])]
        self.skipped, self._patched = skipped, set(patched) - set(skipped)
        self.moved = frozenset(self._patched)
        self._check_patches(handle.name)
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
        return [*lines, *(f"  {line}" for line in self.misfit_lines()),
                "  a MODEL has no identity: stopped, its save starts over; it is saved again whenever Save Model runs, which "
                "ComfyUI leaves out while it has the unchanged queue in its cache"]

    def misfit_lines(self) -> list[str]:
        """A line for each kind of patch of which some do not fit."""
        return patch_fit.told(self._misfits, self._counts)

    def _check_patches(self, name: str) -> None:
        patches = {key: self.model.patches[PREFIX + key] for key in self._specs if key in self._patched}
        self._counts = Counter(patch_fit.label(patch) for each in patches.values() for patch in each)
        with torch.inference_mode():
            self._misfits = patch_fit.misfits(patches, {key: self._specs[key].shape for key in patches})
        patch_fit.check_some_fit(self._misfits, self._counts, name)

    def _patch_kinds(self) -> list[str]:
        kinds = self._counts - Counter(each.kind for each in self._misfits)
        return [f"{count} patches of {kind}" for kind, count in sorted(kinds.items())]

    def _final(self, name: str) -> torch.Tensor:
        weight = to_float32(base_weight(self.model, name))
        if name.removeprefix(PREFIX) in self._patched:
            known = any(each.key == name.removeprefix(PREFIX) for each in self._misfits)
            with Listening([] if known else self.complaints):   # those that do not fit stay: ComfyUI itself leaves them out
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
    return {dit.role: open_model(dit)} if isinstance(dit, ModelDit) else {}


def bake_lines(sources: dict[str, ModelSource]) -> list[str]:
    """Patches that were left out, as they are when ComfyUI samples, and what else it complained of while it applied them."""
    lines = [f"note: {line}" for source in sources.values() for line in source.misfit_lines()]
    said = list(dict.fromkeys(line for source in sources.values() for line in source.complaints))
    more = f" ({len(said)} such lines, see ComfyUI's log)" if len(said) > 1 else ""
    return lines + [f"note: ComfyUI: {line}{more}" for line in said[:1]]
