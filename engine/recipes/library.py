"""The files that a recipe may be linked to: their relative names, their paths, and the hashes that are known of them."""
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ..hashes import HashCache


@dataclass
class Library:
    """The files that may be used: relative name -> path. cache: their known hashes.

    folder: relative paths count from it; outside: paths that the recipe gives are used although they are not listed here;
    search: read and hash every file when a LoRA is found by nothing else; tick: called while hashing, may raise to stop.
    """

    files: Mapping[str, str]
    cache: HashCache = field(default_factory=lambda: HashCache(None))
    folder: str = ""
    outside: bool = False
    search: bool = False
    tick: Callable[[], object] = bool

    def __post_init__(self):
        self.files = {slashed(name): path for name, path in sorted(self.files.items())}
        self.known = {os.path.normcase(os.path.abspath(path)): path for path in self.files.values()}

    def at(self, path: str) -> str | None:
        """The path itself when it is a file that may be used."""
        path = os.path.join(self.folder, os.path.expanduser(path))
        if self.outside and os.path.isfile(path):
            return path
        return self.known.get(os.path.normcase(os.path.abspath(path))) if os.path.isabs(path) else None

    def named(self, name: str, spell: Callable[[str], str] = str) -> list[str]:
        """Relative names of the files that are called so, whatever their folder."""
        return [each for each in self.files if spell(each.rsplit("/", 1)[-1]) == spell(name)]

    def hashed(self, sha256: str) -> list[str]:
        """Relative names of the files of this content. Reads them only in a search; else only known hashes count."""
        known = [name for name, path in self.files.items() if self.cache.known_sha256(path) == sha256]
        if known or not self.search:
            return known
        return [name for name, path in self.files.items() if self.cache.sha256(path, self.tick) == sha256]


def list_folders(folders: Iterable[str]) -> dict[str, str]:
    """Relative name -> path of every safetensors file in and below some folders; of equal names the first folder's."""
    found: dict[str, str] = {}
    for root in folders:
        for folder, _, names in os.walk(root):
            for name in sorted(names):
                if name.lower().endswith(".safetensors"):
                    path = os.path.join(folder, name)
                    found.setdefault(os.path.relpath(path, root), path)
    return found


def slashed(path: str) -> str:
    """A path with `/` between its parts, wherever it was written."""
    return path.replace("\\", "/").removeprefix("./")
