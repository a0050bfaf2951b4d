"""SHA-256 of LoRA files, remembered by path, size and time of change, because reading 1.2 GB at every queue would be felt."""
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

from .system import hash_file, read_json, write_json

NAME = "hashes.json"
LARGEST = 1 << 20                                  # bytes of a sidecar


class HashCache:
    """Hashes kept in `folder/hashes.json`; None keeps them for this object's life only."""

    def __init__(self, folder: Path | None):
        self.path = None if folder is None else Path(folder) / NAME
        found = None if self.path is None else read_json(self.path)
        self.known: dict[str, list] = found if isinstance(found, dict) else {}

    def sha256(self, path: str, tick: Callable[[], None] = bool) -> str:
        """Hash of the whole file; reads it unless it was read before. `tick` is called every 4 MiB and may raise to stop."""
        path = os.path.realpath(path)
        found = self._remembered(path)
        if found is None:
            stat, found = os.stat(path), hash_file(path, tick)
            self.known[path] = [stat.st_size, stat.st_mtime_ns, found]
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self.path, self.known)
        return found

    def known_sha256(self, path: str) -> str | None:
        """Hash of a base, if somebody computed it already: this cache, `FILE.sha256`, or the `.metadata.json` of Lora-Manager.

        Nothing is read for it: a base has 28 GB. A folder or an index has none. A sidecar older than its file is not believed.
        """
        if not os.path.isfile(path):
            return None
        sidecars = (path + ".sha256", os.path.splitext(path)[0] + ".metadata.json")
        told = (_told(sidecar) for sidecar in sidecars if _is_current(sidecar, path))
        return self._remembered(os.path.realpath(path)) or next((each for each in told if each), None)

    def _remembered(self, path: str) -> str | None:
        stat, entry = os.stat(path), self.known.get(path)
        is_current = isinstance(entry, list) and len(entry) == 3 and entry[:2] == [stat.st_size, stat.st_mtime_ns]
        return entry[2] if is_current else None


def _is_current(sidecar: str, path: str) -> bool:
    return os.path.isfile(sidecar) and os.path.getsize(sidecar) < LARGEST and os.path.getmtime(sidecar) >= os.path.getmtime(path)


def _told(sidecar: str) -> str | None:
    """The hash that a sidecar names, or None."""
    text = Path(sidecar).read_text(encoding="utf-8", errors="replace")
    if sidecar.endswith(".json"):
        try:
            found = json.loads(text)
        except ValueError:
            return None                            # somebody else's file: what it does not say is unknown
        text = str(found.get("sha256", "")) if isinstance(found, dict) else ""
    digest = re.match(r"\s*([0-9a-fA-F]{64})\b", text)
    return digest[1].lower() if digest else None
