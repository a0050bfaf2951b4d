"""The modules of a LoRA file by native layer and expert, from its header alone, without a base."""
from dataclasses import dataclass, field

import torch

from ..errors import LoraError
from ..loras.dialects import split
from ..loras.file_dialect import FileDialect
from ..loras.lora import LoraFile
from ..loras.modules import Refused
from ..specs import TensorSpec
from .suffixes import alike
from .wan_layers import wan_index


@dataclass
class FileModule:
    """One module name of the file. parts: part (suffixes.alike) -> key. expert: as its name says, None when it does not."""

    name: str
    layer: str
    expert: str | None
    parts: dict[str, str] = field(default_factory=dict)


@dataclass
class Contents:
    """modules in file order; refused: keys of none; dialect: what the names of the whole file say."""

    lora: LoraFile
    modules: list[FileModule]
    refused: list[Refused]
    dialect: FileDialect

    def spec(self, key: str) -> TensorSpec:
        return self.lora.header.entries[key].spec


def read_contents(lora: LoraFile) -> Contents:
    """Sort the keys of a LoRA. Raises LoraError when none is a LoRA's, or one layer is there in two spellings."""
    dialect, index = lora.dialect, wan_index(lora.specs)
    found, refused = {}, []
    for key in lora.specs:
        pieces = split(key)
        if pieces is None or _is_stray_weight(lora, pieces):
            refused.append(Refused(key, "not a key of a LoRA"))
            continue
        name, part = pieces[0], alike(pieces[1])
        place = index.place(name, dialect)
        if place is None:
            refused.append(Refused(key, index.why_not(name)))
            continue
        parts = found.setdefault(name, FileModule(name, place.layer, place.expert)).parts
        if part in parts:
            raise LoraError(f"{lora.name}: {key}: expected once, found also as {parts[part]}; add the two up by Merge LoRAs")
        parts[part] = key
    modules = list(found.values())
    if not modules:
        raise LoraError(f"{lora.name}: no key of a LoRA for Wan; first: {refused[0].key if refused else 'none'}: "
                        f"{refused[0].reason if refused else 'the file is empty'}")
    return Contents(lora, modules, refused, dialect)


def check_once(contents: Contents) -> None:
    """Raise LoraError when two module names mean one layer of one expert: they add up, which one name cannot say."""
    seen: dict[tuple[str, str | None], str] = {}
    for module in contents.modules:
        other = seen.setdefault((module.layer, module.expert), module.name)
        if other != module.name:
            raise LoraError(f"{contents.lora.name}: {module.name}: the layer is also {other}; add the two up by Merge LoRAs")


def _is_stray_weight(lora: LoraFile, pieces: tuple[str, str]) -> bool:
    """Whether `.weight` ends the key of a tensor that is no IA3's."""
    return pieces[1] == "weight" and f"{pieces[0]}.on_input" not in lora.specs


def read_stored(lora: LoraFile, key: str) -> torch.Tensor:
    """One tensor in the dtype it is stored in, bit by bit, on the CPU."""
    entry = lora.header.entries[key]
    raw = bytearray(entry.nbytes)
    if not raw:
        return torch.empty(entry.spec.shape, dtype=entry.spec.dtype)
    lora.file.read_into(entry.start, memoryview(raw))
    return torch.frombuffer(raw, dtype=torch.uint8).view(entry.spec.dtype).view(entry.spec.shape)
