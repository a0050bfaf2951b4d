"""SHA-256 of LoRA files, remembered by path, size and time of change, because reading 1.2 GB at every queue would be felt."""
import json
import os
from pathlib import Path

from .system import hash_file, write_json

NAME = "hashes.json"


class HashCache:
    """Hashes kept in `folder/hashes.json`; None keeps them for this object's life only."""

    def __init__(self, folder: Path | None):
        self.path = None if folder is None else Path(folder) / NAME
        self.known: dict[str, list] = {}
        if self.path is not None and self.path.exists():
            try:
                found = json.loads(self.path.read_text(encoding="utf-8"))
            except ValueError:
                found = None                       # a cache: what is unreadable is computed again
            self.known = found if isinstance(found, dict) else {}

    def sha256(self, path: str) -> str:
        """Hash of the whole file."""
        path = os.path.realpath(path)
        stat = os.stat(path)
        entry = self.known.get(path)
        if not isinstance(entry, list) or len(entry) != 3 or entry[:2] != [stat.st_size, stat.st_mtime_ns]:
            self.known[path] = entry = [stat.st_size, stat.st_mtime_ns, hash_file(path)]
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.path, self.known)
        return entry[2]
