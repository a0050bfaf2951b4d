"""One LoRA file: opened, described, read tensor by tensor.

What of it fits a base is `match`'s answer (ledger.py); what it does to a weight is engine/merging's.
"""
import os
import re
from dataclasses import dataclass, field
from functools import cached_property

import torch

from ..errors import LoraError
from ..header import Header, read_header
from ..specs import TensorSpec
from ..system import ReadFile, open_read
from .dialects import Index, split
from .file_dialect import FileDialect, read_dialect
from .ledger import Diff, Ledger, Module, Pair, Refused, match
from .peft_config import Adapter, choose_adapter, read_adapters

__all__ = ["Diff", "Index", "Ledger", "LoraFile", "Module", "Pair", "Refused", "match", "open_lora"]

# Makers and methods of step-distillation LoRAs for Wan, as their files and folders are called.
DISTILLATION = re.compile(
    r"(?<![a-z0-9])"
    r"(lightx2v|lightning|seko|causvid|accvid(?:eo)?|fusioni?x|4[-_ ]?steps?|cfg[-_ ]?step[-_ ]?distill|dmd2?|turbo)"
    r"(?![a-z0-9])"
)
VAGUE = {"weight", "alpha", "rescale"}              # endings that other files have too
TITLES = ("modelspec.title", "ss_output_name")


def _distillation_name(text: str) -> str | None:
    """The first distillation name in a text, whole words only; camel case counts as a boundary."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", " ", text)
    found = DISTILLATION.search(text.lower()) or DISTILLATION.search(spaced.lower())
    return found[1] if found else None


@dataclass(frozen=True)
class LoraFile:
    """A LoRA as it lies on disk. Its tensors are read when asked for; the file stays open until `close`."""

    path: str
    header: Header
    file: ReadFile = field(repr=False)

    @property
    def name(self) -> str:
        """The file's name without its folders."""
        return os.path.basename(self.path)

    @property
    def metadata(self) -> dict[str, str]:
        return self.header.metadata

    @cached_property
    def specs(self) -> dict[str, TensorSpec]:
        """Shape and dtype of every tensor of the file."""
        return {key: entry.spec for key, entry in self.header.entries.items()}

    @cached_property
    def rank(self) -> str:
        """`64`, `16 to 64` or `none` (direct differences only), from the header."""
        parts = [((split(key) or ("", ""))[1], spec.shape) for key, spec in self.specs.items()]
        downs = [shape for part, shape in parts if part == "A" or part.endswith("down")]
        ranks = sorted({shape[0] for shape in downs if shape})
        return "none" if not ranks else str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"

    @cached_property
    def dialect(self) -> FileDialect:
        """What the names of its keys say together."""
        return read_dialect((found[0] for key in self.header.entries if (found := split(key))), self.header.entries)

    @cached_property
    def adapters(self) -> dict[str, Adapter]:
        """PEFT's configurations, from the metadata or beside the file. Raises LoraError when one is malformed."""
        return read_adapters(self.path, self.metadata)

    def adapter_of(self, module: str) -> Adapter | None:
        """The configuration that holds for a module of this file."""
        return choose_adapter(self.adapters, module)

    @property
    def is_distillation(self) -> str | None:
        """What says that this LoRA shortens sampling (and must be added whole), None when nothing does."""
        folder, name = os.path.split(os.path.abspath(self.path))
        places = [("file name", os.path.splitext(name)[0]), ("folder", os.path.basename(folder))]
        places += [(f"metadata {title}", self.metadata.get(title, "")) for title in TITLES]
        return next((f'{place} says "{word}"' for place, text in places if (word := _distillation_name(text))), None)

    def read(self, key: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        """One tensor, or its rows [start, stop) along dim 0, float32 on the CPU (float64 and integers are rounded to float32)."""
        entry = self.header.entries[key]
        shape, offset = entry.spec.shape, entry.start
        if rows is not None and shape:
            row_bytes = entry.spec.nbytes // shape[0]
            shape, offset = (rows[1] - rows[0], *shape[1:]), offset + rows[0] * row_bytes
        count = 1
        for length in shape:
            count *= length
        raw = bytearray(count * entry.spec.dtype.itemsize)
        if not raw:
            return torch.empty(shape)
        self.file.read_into(offset, memoryview(raw))
        return torch.frombuffer(raw, dtype=torch.uint8).view(entry.spec.dtype).view(shape).to(torch.float32)

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> "LoraFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_lora(path: str | os.PathLike[str]) -> LoraFile:
    """Open a LoRA. Raises HeaderError for a broken file, LoraError when no key looks like a LoRA's."""
    path = os.fspath(path)
    header = read_header(path)
    if not any("lora" in key or (split(key) or ("", "weight"))[1] not in VAGUE for key in header.entries):
        first = next(iter(header.entries), "no key at all")
        expected = "expected a LoRA (keys ending in .lora_down.weight or .lora_A.weight)"
        raise LoraError(f"{os.path.basename(path)}: {expected}, found {first}; choose a LoRA file")
    return LoraFile(path, header, open_read(path))
