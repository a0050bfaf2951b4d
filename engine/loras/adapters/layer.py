"""One module name of one LoRA while it is laid on a base: its parts, their shapes, the tensors they may go to, its alpha."""
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..alpha import ABSENT, factor
from ..fit import Shape
from ..modules import Module, Refused
from .spelling import ENDINGS

if TYPE_CHECKING:
    from ..dialects import Index
    from ..lora import LoraFile

Result = tuple[str, Module] | Refused
RS = ", rs-LoRA"


@dataclass(frozen=True)
class Layer:
    """name: the native layer; parts: part (a value of SUFFIXES) -> key of the file; rs_lora: None where the metadata decides."""

    lora: "LoraFile"
    index: "Index"
    name: str
    parts: dict[str, str]
    rs_lora: bool | None = None

    @property
    def weight(self) -> str | None:
        """Key of the base that holds the layer's weight, or the bare parameter itself."""
        return next((key for key in (f"{self.name}.weight", self.name) if key in self.index.specs), None)

    @property
    def bias(self) -> str | None:
        key = f"{self.name}.bias"
        return key if key in self.index.specs else None

    def shape(self, part: str) -> Shape:
        """Of the part as stored."""
        return self.lora.header.entries[self.parts[part]].spec.shape

    def target(self, key: str) -> Shape:
        """Shape of a tensor of the base."""
        return self.index.specs[key].shape

    def keys(self, parts) -> tuple[str, ...]:
        """Keys of those parts that the file has."""
        return tuple(self.parts[part] for part in parts if part in self.parts)

    def refuse(self, parts, reason: str) -> list[Result]:
        """The same reason for each of those parts that the file has."""
        return [Refused(key, reason) for key in self.keys(parts)]

    def missing(self, what: str = "weight") -> str:
        """The reason when the base has no such tensor."""
        return f"no such layer in this model: no {what} in {self.name}"

    def scalar(self, part: str) -> float:
        """A part of one element, of any shape and dtype."""
        return self.lora.read(self.parts[part]).reshape(()).item()

    def stored_factor(self, rank: int) -> tuple[float, str]:
        """(alpha / rank, what it rests on) of a kind whose alpha only its own tensor can give; 1 without one."""
        return factor(self.lora, self.name, self.parts["alpha"], rank) if "alpha" in self.parts else (1.0, ABSENT)

    def lora_factor(self, down: str, rank: int) -> tuple[float, str]:
        """(alpha / rank, what it rests on) of a product of factors; down: its part, whose key names the module for PEFT's patterns.

        rs_lora True: alpha / sqrt(rank) whatever the metadata says; False: alpha / rank.
        """
        module = self.parts[down].removesuffix(ENDINGS[down])
        value, told = factor(self.lora, module, self.parts.get("alpha"), rank)
        is_root = told.endswith(RS)
        if self.rs_lora is None or self.rs_lora == is_root:
            return value, told
        if is_root:
            return value / math.sqrt(rank), f"{told.removesuffix(RS)}, rs-LoRA switched off"
        return value * math.sqrt(rank), f"{told}{RS} switched on"
