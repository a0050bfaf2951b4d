"""One store file: the entries of one LoRA on one base, as safetensors with a JSON of figures in its metadata.

Written entry by entry, so that nothing piles up in memory: room for the header is kept at the front, the tensors follow, the
header is written last, padded with spaces (the format allows them), and the file gets its name when it is whole.
"""
import json
import os
from pathlib import Path

import torch

from ...errors import HeaderError
from ...header import LENGTH_BYTES, Header, read_header
from ...system import open_read, open_write, replace
from .entry import Entry

PART = ".part"
TENSORS = ("left", "right", "new", "known")
ROOM = 4096  # bytes of header kept for one entry: four tensors of 150 bytes, figures of 700 with escaped quotes, names


class StoreFile:
    """Entries by name. identity: what the file belongs to, as JSON; one that says otherwise, or is damaged, counts as empty."""

    def __init__(self, path: Path, identity: dict):
        self.path, self.identity = Path(path), identity
        self.header, self.figures = self._open()

    def _open(self) -> tuple[Header | None, dict[str, dict]]:
        if not self.path.is_file():
            return None, {}
        try:
            header = read_header(self.path)
            said = json.loads(header.metadata.get("adaptive", "null"))
        except (HeaderError, ValueError):          # a cache: what is unreadable is measured again
            return None, {}
        if not isinstance(said, dict) or said.get("identity") != self.identity or not isinstance(said.get("entries"), dict):
            return None, {}
        return header, said["entries"]

    def names(self) -> set[str]:
        return set(self.figures)

    def read(self, name: str) -> Entry:
        """Raises KeyError when there is no such entry. Opens the file for this one read: another run may replace it."""
        figures, found = self.figures[name], dict.fromkeys(TENSORS)
        with open_read(self.path) as file:
            for each in TENSORS:
                place = self.header.entries.get(f"{name}/{each}")
                if place is not None:
                    raw = bytearray(place.nbytes)
                    file.read_into(place.start, memoryview(raw))
                    flat = torch.frombuffer(raw, dtype=torch.float64) if raw else torch.empty(0, dtype=torch.float64)
                    found[each] = flat.view(place.spec.shape)
        return Entry(found["left"], found["right"], found["new"], found["known"], figures)

    def writer(self, names: list[str]) -> "StoreWriter":
        """Begin a new file with room for these names, what is here already carried over."""
        return StoreWriter(self, names)


class StoreWriter:
    """Takes entries and seals them. Nothing of it is seen before `seal`; raises PlanError while another run is at it."""

    def __init__(self, store: StoreFile, names: list[str]):
        self.store, self.figures, self.tensors = store, {}, {}
        part = str(store.path) + PART
        self.file = open_write(part, resume=os.path.exists(part))
        try:
            self.file.claim()
            self.file.clear()
            everything = store.names() | set(names)
            self.room = ROOM + sum(ROOM + 12 * len(name) for name in everything)
            self.end = 0
            for name in sorted(store.names() - set(names)):
                self.put(name, store.read(name))
        except BaseException:
            self.close()
            raise

    def put(self, name: str, entry: Entry) -> None:
        """Append one entry."""
        for each in TENSORS:
            tensor = getattr(entry, each)
            if tensor is not None:
                memory = tensor.contiguous().numpy().tobytes()
                self.file.write_at(LENGTH_BYTES + self.room + self.end, memory)
                stop = self.end + len(memory)
                self.tensors[f"{name}/{each}"] = {"dtype": "F64", "shape": list(tensor.shape), "data_offsets": [self.end, stop]}
                self.end = stop
        self.figures[name] = entry.figures

    def seal(self) -> StoreFile:
        """Write the header and give the file its name; returns it opened."""
        told = json.dumps({"identity": self.store.identity, "entries": self.figures}, allow_nan=False)
        header = json.dumps({"__metadata__": {"adaptive": told}, **self.tensors}).encode()
        if len(header) > self.room:
            raise RuntimeError(f"{self.store.path}: {len(header)} bytes of header in room for {self.room}")
        self.file.write_at(0, self.room.to_bytes(LENGTH_BYTES, "little") + header.ljust(self.room))
        self.file.sync()
        self.file.close()
        path, _ = replace(self.file.path, self.store.path)
        return StoreFile(path, self.store.identity)

    def close(self) -> None:
        """Let go of the part, sealed or not; calling it twice is allowed. What was sealed before stays."""
        self.file.close()
