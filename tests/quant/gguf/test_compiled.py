"""Kernels kept on disk, in processes of their own, each with a copy of `quant`: numba alone decides when it reads its cache."""
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

numba = pytest.importorskip("numba", reason="the compiled path needs the optional package numba")
from wan22_master.quant import kernel_cache, nvfp4_compiled  # noqa: E402
from wan22_master.quant.gguf import families  # noqa: E402

QUANT = Path(kernel_cache.__file__).parent
# Calls a kernel of compiled.py, and holds a constant of a file that has no kernels.
CALLER = """from .compiled import compiled, whole
from .table import STEP

@compiled
def moved(value):
    return value + STEP

@compiled
def caller(value):
    return moved(whole(value))
"""
RUN = """from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from quant.gguf.caller_compiled import caller
{before}
together = Barrier(4)
with ThreadPoolExecutor(4) as workers:
    found = set(workers.map(lambda _: (together.wait(), caller(2.6))[1], range(4)))
print(*found, sum(caller.stats.cache_hits.values()), sum(caller.stats.cache_misses.values()))
"""


@pytest.fixture
def copy(tmp_path):
    """A copy of `quant` with a kernel more; `caller(2.6)` is 3 + 10."""
    shutil.copytree(QUANT, tmp_path / "quant", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "quant/gguf/caller_compiled.py").write_text(CALLER)
    (tmp_path / "quant/gguf/table.py").write_text("STEP = 10.0\n")
    return tmp_path


def start(copy: Path, before: str = "", **variables: str) -> subprocess.Popen:
    variables = {**os.environ, "NUMBA_CACHE_DIR": str(copy / "cache"), "PYTHONDONTWRITEBYTECODE": "1", **variables}
    return subprocess.Popen([sys.executable, "-c", RUN.format(before=before)], cwd=copy, env=variables, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def end(process: subprocess.Popen) -> tuple[list[float], str]:
    """([what the caller gave, kernels loaded, kernels compiled], stderr) of a run in which four threads make the first call."""
    out, told = process.communicate()
    assert process.returncode == 0, told
    return [float(word) for word in out.split()], told


def run(copy: Path, before: str = "", **variables: str) -> list[float]:
    found, told = end(start(copy, before, **variables))
    assert not told
    return found


def kept(copy: Path, name: str = "") -> list[Path]:
    return [path for path in (copy / "cache").rglob("*") if path.is_file() and path.name.startswith(name)]


def edit(path: Path, old: str, new: str):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_caller_is_compiled_again_when_what_it_holds_changed_in_another_file(copy):
    assert run(copy) == [13, 0, 1]
    edit(copy / "quant/gguf/table.py", "10.0", "20.0")
    assert run(copy) == [23, 0, 1]
    edit(copy / "quant/gguf/compiled.py", "float32(12582912.0)", "float32(25165824.0)")     # 1.5 * 2**24: to even numbers
    assert run(copy) == [22, 0, 1]
    assert run(copy) == [22, 1, 0]
    assert len(kept(copy, "caller_compiled.caller-")) == 1, "old kernels stay on the disk"


def test_a_damaged_kernel_is_compiled_and_replaced(copy):
    run(copy)
    index = (path := kept(copy, "caller_compiled.caller-")[0]).with_name(path.name.rsplit(".", 3)[0] + ".nbi")
    index.write_bytes(b"\x80")                     # what numba's own cache would read, cut off
    for damage in (lambda stored: stored[:20], lambda stored: stored[:-9], lambda stored: stored[:-900] + bytes(900)):
        for path in kept(copy, "caller_compiled.caller-"):
            path.write_bytes(damage(path.read_bytes()))
        assert run(copy) == [13, 0, 1]
    assert run(copy) == [13, 1, 0]
    assert not index.exists()


FULL = """import errno, pathlib
def write_bytes(path, data):
    with open(path, "wb") as file:
        file.write(data[:9])
    raise OSError(errno.ENOSPC, "No space left on device")
pathlib.Path.write_bytes = write_bytes"""


def test_on_a_full_disk_kernels_are_compiled_and_the_user_is_told_once(copy):
    found, told = end(start(copy, FULL))
    assert found == [13, 0, 1]
    assert told.count(" RuntimeWarning: ") == 1, "two kernels are compiled"
    assert "compiled code cannot be kept here" in told and "No space left on device" in told
    assert not kept(copy)


def test_without_a_folder_to_keep_kernels_in_they_are_compiled(copy):
    (copy / "cache").write_text("")
    assert run(copy, NUMBA_CACHE_LOCATOR_CLASSES="UserProvidedCacheLocator") == [13, 0, 1]


def test_processes_that_compile_at_the_same_time_keep_one_kernel(copy):
    assert [end(process)[0][0] for process in [start(copy) for _ in range(2)]] == [13] * 2
    assert run(copy) == [13, 1, 0]
    assert len(kept(copy, "caller_compiled.caller-")) == 1


def test_every_kernel_of_the_pack_is_kept_this_way():
    names = [path.stem for path in (QUANT / "gguf").glob("*compiled.py")]
    modules = [nvfp4_compiled, *(importlib.import_module(f"{families.__package__}.{name}") for name in names)]
    found = [kernel for module in modules for kernel in vars(module).values() if hasattr(kernel, "py_func")]
    assert len(found) > 60 and all(isinstance(kernel._cache, kernel_cache.KernelCache) for kernel in found)
