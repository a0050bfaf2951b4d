"""From what a person chose, a file, an index, one shard or a folder, to the files that make up one model."""
import os
import re
from dataclasses import dataclass

from .. import strict_json
from ..errors import SourceError
from ..header import Header, read_header
from ..system import naming

INDEX = ".safetensors.index.json"
WEIGHTS = ".safetensors"
SHARD = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors$")  # huggingface_hub's spelling
MAX_INDEX_BYTES = 100_000_000  # as a header


@dataclass(frozen=True)
class FileSet:
    """The files of one model, in order. `weight_map` (key -> file name) is None where no index says what lies where."""

    files: tuple[str, ...]
    weight_map: dict[str, str] | None = None
    index: str = ""


def find_files(path: str) -> FileSet:
    """Files of the model that `path` names. Raises SourceError when it names none, several, or a set with a part missing."""
    if os.path.isdir(path):
        return _in_folder(path)
    if path.endswith(INDEX):
        return _from_index(path)
    shard = SHARD.match(os.path.basename(path))
    if shard:
        index = _index_beside(path)
        return _from_index(index) if index else _numbered(os.path.dirname(path), shard["stem"], int(shard["count"]))
    if not path.endswith(WEIGHTS) and os.path.isfile(path):
        raise SourceError(f"{path}: expected a .safetensors file or its index, found neither; choose the .safetensors one")
    index = _index_beside(path)
    return _from_index(index) if index else FileSet((path,))


def read_headers(files: FileSet) -> list[Header]:
    """Headers in the set's order. Raises SourceError where the shards and the index disagree, or a key is in two shards."""
    headers, owner = [read_header(path) for path in files.files], {}
    for header in headers:
        for key in header.entries:
            if key in owner:
                raise SourceError(f"{header.path}: {key}: expected in one shard, also in {owner[key]}; remove the foreign file")
            owner[key] = os.path.basename(header.path)
    if files.weight_map is not None and owner != files.weight_map:
        _explain(files, owner)
    return headers


def _explain(files: FileSet, owner: dict[str, str]) -> None:
    for key, name in files.weight_map.items():
        if owner.get(key) != name:
            found = f"it is in {owner[key]}" if key in owner else "it is in none"
            raise SourceError(f"{files.index}: {key}: expected in {name}, found: {found}; download the set again")
    key = next(key for key in owner if key not in files.weight_map)
    raise SourceError(f"{files.index}: {key}: expected in the index, found only in {owner[key]}; download the set again")


def _in_folder(folder: str) -> FileSet:
    with naming(folder, "listed", "check the rights of the folder, or choose the file itself"):
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    indexes = [name for name in names if name.endswith(INDEX)]
    weights = [name for name in names if name.endswith(WEIGHTS)]
    sets = {SHARD.sub(r"\g<stem>-\g<count>", name) for name in weights}
    if len(indexes) == 1:
        return _from_index(os.path.join(folder, indexes[0]))
    if not indexes and len(sets) == 1:
        return find_files(os.path.join(folder, weights[0]))
    found = f"{len(indexes)} indexes and {len(sets)} models: {', '.join((indexes or weights)[:4]) or 'no .safetensors file'}"
    raise SourceError(f"{folder}: expected one index, one file or one set of shards, found {found}; choose the file itself")


def _index_beside(path: str) -> str | None:
    """The index in the same folder that lists this file; an index of another model there is none of ours, nor is one in a folder
    that cannot be listed."""
    folder, name = os.path.split(path)
    try:
        beside = sorted(os.listdir(folder or "."))
    except OSError:
        return None
    for candidate in beside:
        if candidate.endswith(INDEX) and _lists(os.path.join(folder, candidate), name):
            return os.path.join(folder, candidate)
    return None


def _lists(index: str, name: str) -> bool:
    """A broken index lists nothing: it may be another model's, and shards are also found by their numbers."""
    try:
        return name in _weight_map(index).values()
    except SourceError:
        return False


def _numbered(folder: str, stem: str, count: int) -> FileSet:
    names = [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    return FileSet(_all_present(folder, names, f"{stem}-*-of-{count:05d}.safetensors"))


def _from_index(path: str) -> FileSet:
    weight_map = _weight_map(path)
    names = sorted(set(weight_map.values()))
    return FileSet(_all_present(os.path.dirname(path), names, path), weight_map, path)


def _all_present(folder: str, names: list[str], where: str) -> tuple[str, ...]:
    paths = tuple(os.path.join(folder, name) for name in names)
    missing = [name for name, path in zip(names, paths, strict=True) if not os.path.isfile(path)]
    if missing:
        raise SourceError(f"{where}: expected {len(names)} shards, missing {', '.join(missing)}; download into {folder or '.'}")
    return paths


def _weight_map(path: str) -> dict[str, str]:
    """key -> file name. Raises SourceError when the index is none, or points out of its own folder."""
    try:
        if os.path.getsize(path) > MAX_INDEX_BYTES:
            raise SourceError(f"{path}: expected an index of at most {MAX_INDEX_BYTES} bytes; download it again")
        with open(path, "rb") as file:
            found = strict_json.parse(file.read()).get("weight_map")
    except OSError as cause:
        raise SourceError(f"{path}: cannot be read: {cause.strerror or cause}; check the path and the permissions") from cause
    except ValueError as cause:
        raise SourceError(f"{path}: expected a JSON index, found: {str(cause)[:200]}; download it again") from cause
    if not isinstance(found, dict) or not found or not all(isinstance(name, str) for name in found.values()):
        raise SourceError(f"{path}: expected weight_map with file names by key, found {str(found)[:80]}; download it again")
    for name in set(found.values()):
        if name != os.path.basename(name) or "\\" in name or not name.endswith(WEIGHTS):
            raise SourceError(f"{path}: expected .safetensors files beside the index, found {name[:200]!r}; download it again")
    return found
