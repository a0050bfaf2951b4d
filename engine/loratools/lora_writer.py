"""A LoRA file while it is written: tensor after tensor behind a header whose room is reserved beforehand, one tensor in memory.

Ranks may turn out smaller than planned, and tensors may fall away: the header is written last, into the room that the largest
possible one needs, and filled up with spaces (huggingface/safetensors, README "Format"). The library's own serializer wants all
tensors at once: 1.2 GB for a rank-64 float32 LoRA of one expert.
"""
import json
import os

import torch

from ..errors import PlanError
from ..jobs.layout import ALIGNMENT, PADDING
from ..jobs.writer import raw
from ..specs import NAMES, TensorSpec
from ..system import free_bytes, next_free, open_write, replace, sync_folder
from .wish import Save

PART = ".part"


def check_target(save: Save) -> None:
    """Raise PlanError when the file exists and must not be touched, or its folder is missing: before anything is computed."""
    if save.on_exists == "error" and os.path.exists(save.path):
        raise PlanError(f"{save.path}: exists already; choose another name, or on_exists number or overwrite")
    if not os.path.isdir(os.path.dirname(os.path.abspath(save.path))):
        raise PlanError(f"{save.path}: expected an existing folder; make it, or choose another")


class LoraWriter:
    """Use in a `with` block: `add` every tensor, then `place`. Left without `place`, the part is removed."""

    def __init__(self, save: Save, planned: dict[str, TensorSpec], metadata: dict[str, str]):
        """planned: name -> dtype and largest shape of every tensor that may come, in file order."""
        check_target(save)
        self.save, self.planned, self.metadata = save, planned, metadata
        self.written: dict[str, TensorSpec] = {}
        length = len(self._json(planned)) + 8 + PADDING
        self.start = self.end = length + -length % ALIGNMENT
        self.part = save.path + PART
        self.file = open_write(self.part, resume=os.path.exists(self.part))
        try:
            self.file.claim()
            self.file.clear()
        except BaseException:
            self.file.close()                      # it is another run's: it stays as it is
            raise

    def _json(self, specs: dict[str, TensorSpec]) -> bytes:
        header, end = ({"__metadata__": self.metadata} if self.metadata else {}), 0
        for key, spec in specs.items():
            header[key] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [end, end := end + spec.nbytes]}
        return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()

    def require(self, nbytes: int) -> None:
        """Raise PlanError when the disk has less free than `nbytes` of tensors need."""
        found, needed = free_bytes(self.part), nbytes + self.start
        if found < needed:
            raise PlanError(f"{self.part}: expected {needed / 1e9:.2f} GB free, found {found / 1e9:.2f}; free some space")

    def add(self, key: str, tensor: torch.Tensor) -> None:
        """Write the next tensor. Raises ValueError when it is not what was planned."""
        self.add_bytes(key, TensorSpec(tuple(tensor.shape), tensor.dtype), raw(tensor))

    def add_bytes(self, key: str, spec: TensorSpec, content: memoryview) -> None:
        """Write the next tensor, as stored bytes."""
        plan = self.planned[key]
        fits = len(spec.shape) == len(plan.shape) and all(map(int.__le__, spec.shape, plan.shape))
        if spec.dtype != plan.dtype or not fits or key in self.written:
            raise ValueError(f"{key}: planned {plan.shape} {plan.dtype} once, got {spec.shape} {spec.dtype}")
        if self.end % spec.dtype.itemsize:
            raise ValueError(f"{key}: {spec.dtype} would start at byte {self.end}; write wide dtypes first")
        self.file.write_at(self.end, content)
        self.written[key] = spec
        self.end += spec.nbytes

    def place(self, told: dict[str, str]) -> tuple[str, str | None]:
        """Write the header, with `told` added to the metadata, sync, and give the file its name.

        Returns the name used, and why it is not the one asked for. Raises PlanError when nothing was added.
        """
        if not self.written:
            raise PlanError(f"{self.save.path}: nothing to write")
        self.metadata = {**self.metadata, **told}
        text = self._json(self.written)
        if len(text) + 8 > self.start:
            raise PlanError(f"{self.save.path}: metadata of {len(text)} bytes, more than was reserved; shorten them")
        text += b" " * (self.start - 8 - len(text))
        self.file.write_at(0, memoryview(len(text).to_bytes(8, "little") + text))
        self.file.preallocate(self.end)
        self.file.sync()
        self.file.close()
        target, why = self.save.path, None
        if os.path.exists(target) and self.save.on_exists != "overwrite":
            target = next_free(target)
            why = f"{os.path.basename(self.save.path)} exists already, saved as {os.path.basename(target)}"
        used, held = replace(self.part, target)
        sync_folder(os.path.dirname(os.path.abspath(used)))
        return used, held or why

    def __enter__(self) -> "LoraWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
        if os.path.exists(self.part):
            os.remove(self.part)
