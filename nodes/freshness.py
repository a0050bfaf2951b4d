"""Tell ComfyUI's cache when files that a node made or loaded are not what they were.

ComfyUI caches output nodes too: with unchanged inputs it would not write a deleted file again, nor load an overwritten one.
`token` changes exactly then, so an unbroken queue runs nothing twice. Linked inputs are unknown when ComfyUI asks for a
fingerprint, hence this memory of what each node touched: names and numbers, for as long as the server lives.
"""
import os

_touched: dict[str, dict[str, tuple[int, int] | None]] = {}
_tokens: dict[str, int] = {}


def remember(node: str, paths: list[str]) -> None:
    """Node `node` has just written or read these files."""
    _touched.setdefault(node, {}).update({path: _state(path) for path in paths})


def token(node: str) -> int:
    """A number that grows when a remembered file of this node is gone or changed; those files are then forgotten."""
    files = _touched.get(node, {})
    stale = [path for path, state in files.items() if _state(path) != state]
    for path in stale:
        del files[path]
    _tokens[node] = _tokens.get(node, 0) + bool(stale)
    return _tokens[node]


def _state(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
