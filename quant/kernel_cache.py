"""Where the compiled kernels lie between runs: in numba's folders, in files of our own.

numba's cache on disk asks whether a kernel's own file has changed. A kernel holds also the kernels that it calls and the constants
that it imports; so a file here bears the digest of every source of the kernel's folder in its name. And whatever is wrong with
numba's cache (a damaged file, a full disk) comes out of the first call, at each run; here a kernel that cannot be read is compiled,
and one that cannot be kept is compiled at the next run again. The bytes that kernels write are the same either way.

A file is SHA-256 of the rest, 32 bytes, then the pickled kernel: nothing is unpickled that was not written whole. It is written
beside its place and renamed, and has no index: processes that compile at the same time replace each other's files with like ones.
numba has no public way to say this: a dispatcher's `_cache` and its two calls are numba's own, named alike in 0.58 and 0.68.
"""
import os
import pickle
import warnings
from contextlib import suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import ClassVar

import numba
from numba.core.caching import CompileResultCacheImpl, NullCache
from numba.core.serialize import dumps

CHECK = sha256().digest_size


def kept(jit):
    """A decorator as `jit`, which is `numba.njit(...)` without `cache`; its kernels are kept on disk, where there is a folder."""
    def decorate(function):
        kernel = jit(function)
        with suppress(RuntimeError):               # numba's "no locator available": no folder to write in, or no source
            kernel._cache = KernelCache(function)
        return kernel
    return decorate


@cache
def digest(folder: Path) -> str:
    """12 hex digits of numba's version, this file and all sources of a folder, not of those below it."""
    found = sha256(numba.__version__.encode())
    for path in (Path(__file__), *sorted(folder.glob("*.py"))):
        found.update(path.name.encode() + sha256(path.read_bytes()).digest())
    return found.hexdigest()[:12]


class KernelCache(NullCache):
    """What numba asks for a kernel before it compiles, and hands it to afterwards, one thread at a time."""

    _told: ClassVar[set[Path]] = set()

    def __init__(self, function):
        self._module = function.__module__         # numba's pickles name modules: one pack may be imported under two names
        self._numba = CompileResultCacheImpl(function)
        self._folder = Path(self._numba.locator.get_cache_path())
        self._name = f"{self._numba.filename_base}.{digest(Path(function.__code__.co_filename).parent)}"

    def load_overload(self, sig, target_context):
        """The kernel for a signature, None where it has to be compiled."""
        target_context.refresh()
        try:
            stored = self._path(sig, target_context.codegen()).read_bytes()
        except OSError:
            return None
        if sha256(stored[CHECK:]).digest() != stored[:CHECK]:
            return None
        return self._numba.rebuild(target_context, pickle.loads(stored[CHECK:]))

    def save_overload(self, sig, data):
        """Keep a kernel, and remove those of other sources. Warns, once in a folder, where it cannot be kept."""
        if not self._numba.check_cachable(data):
            return
        path = self._path(sig, data.codegen)
        kernel = dumps(self._numba.reduce(data))
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_others()
            beside.write_bytes(sha256(kernel).digest() + kernel)
            beside.replace(path)
        except OSError as error:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            self._tell(error)

    def _tell(self, error: OSError):
        """Warns once in a folder, not at each of its kernels: Python's own memory of warnings is lost while numba compiles."""
        if self._folder not in self._told:
            self._told.add(self._folder)
            warnings.warn(f"{self._folder}: compiled code cannot be kept here, and is compiled again at each start: {error}; "
                          "make room there, or name another folder by NUMBA_CACHE_DIR", RuntimeWarning, stacklevel=1)

    def _path(self, sig, codegen) -> Path:
        """One file for a signature (its argument types) on a processor."""
        key = repr((self._module, sig, codegen.magic_tuple()))
        return self._folder / f"{self._name}.{sha256(key.encode()).hexdigest()[:16]}.nbc"

    def _remove_others(self):
        """Files of this kernel from other sources, or by numba's own cache."""
        for path in self._folder.glob(f"{self._numba.filename_base}.*"):
            if not path.name.startswith(f"{self._name}."):
                with suppress(OSError):            # open in another process
                    path.unlink(missing_ok=True)
