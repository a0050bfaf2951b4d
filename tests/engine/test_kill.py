"""Fifty SIGKILLs at random moments of a write: no incomplete file under a model's name, and the same bytes in the end.

A warmed process forks the writers, so that torch is imported once. Every other kill is made a power cut, by spoiling all bytes
of the parts that the job files do not vouch for.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from wan22_master.engine.jobs import writer
from wan22_master.tests.engine import tiny

KILLS, SEED = 50, 2
FFN, STRETCH = 1280, 150_000  # 2 MB in bf16, a sync about every second tensor
SERVE = """
import sys
sys.path.insert(0, sys.argv[1])
import conftest
from wan22_master.tests.engine import test_kill
test_kill.serve(sys.argv[2])
"""


def wish(folder: Path, out: str):
    entry = {"files": {"model": str(folder / "l.safetensors")}}
    return tiny.recipe(folder / out, {"model": str(folder / "m.safetensors")}, [entry], ("bf16", "float8_e4m3fn"))


def serve(folder: str) -> None:
    """The warmed process. Each line of stdin: fork a writer, tell its number, wait for the next line, tell how the writer ended."""
    folder = Path(folder)
    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    writer.STRETCH = STRETCH
    for out in ("unbroken", "warm"):
        start = time.monotonic()
        tiny.go(wish(folder, out), folder / f"{out}-reports")
    sys.stdout.write(f"{time.monotonic() - start}\n")
    sys.stdout.flush()
    while sys.stdin.readline():
        child = os.fork()
        if not child:
            write(folder)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        sys.stdin.readline()
        sys.stdout.write(f"{os.waitpid(child, 0)[1]}\n")
        sys.stdout.flush()


def write(folder: Path) -> None:
    """In the forked child: the job, then the end of the process."""
    status = 1
    try:
        tiny.go(wish(folder, "out"), folder / "reports")
        status = 0
    finally:
        if status:
            traceback.print_exc()
        os._exit(status)


class Server:
    """The warmed process as the test sees it."""

    def __init__(self, folder: Path):
        command = [sys.executable, "-c", SERVE, str(Path(__file__).parents[1]), str(folder)]
        env = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        self.seconds = float(self.process.stdout.readline())

    def say(self) -> int:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def kill_after(self, seconds: float | None) -> int:
        """Start a writer, kill it then (None: let it end); how it ended, as waitpid says it."""
        child = self.say()
        if seconds is not None:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)  # its number is not given away before it is waited for
        return self.say()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error) -> None:
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=30)


def finished(out: Path) -> list[list[dict]]:
    """The entered keys of every job file."""
    return [json.loads(path.read_text())["finished"] for path in out.glob("*.job.json")]


def lose_power(out: Path) -> None:
    """Spoil every byte of the parts that was never said to be on the disk."""
    for job in out.glob("*.job.json"):
        rows, part = json.loads(job.read_text())["finished"], Path(str(job).replace(".job.json", ".part"))
        if not part.exists():
            continue
        content = bytearray(part.read_bytes())
        if not rows:
            content[:] = b"\xaa" * len(content)
        else:
            start = 8 + int.from_bytes(content[:8], "little")
            entries = {name: each for name, each in json.loads(content[8:start]).items() if name != "__metadata__"}
            said = {name: [start + at for at in each["data_offsets"]] for name, each in entries.items()}
            tail = min((at[0] for name, at in said.items() if name.endswith(".comfy_quant")), default=len(content))
            safe = {name for row in rows for name in row["sides"]}
            scales = [at for name, at in said.items() if name.endswith(".weight_scale") and name not in safe]
            for begin, end in [(rows[-1]["end"], tail), *scales]:
                content[begin:end] = b"\xaa" * (end - begin)
        part.write_bytes(content)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_fifty_kills_leave_no_incomplete_model_and_no_trace_in_the_bytes(tmp_path):
    tiny.save(tmp_path / "m.safetensors", tiny.base(ffn=FFN))
    tiny.save(tmp_path / "l.safetensors", tiny.lora(ffn=FFN))
    draw, out, kills, half_way = random.Random(SEED), tmp_path / "out", 0, 0
    with Server(tmp_path) as server:
        unbroken = tiny.files(tmp_path / "unbroken")
        assert len(unbroken) == 2
        while kills < KILLS:
            end = server.kill_after(draw.uniform(0, 1.1 * server.seconds))
            assert end in (0, signal.SIGKILL)
            kills += end == signal.SIGKILL
            found = {name: sha256 for name, sha256 in tiny.files(out).items() if name.endswith(".safetensors")}
            assert found.items() <= unbroken.items(), f"kill {kills}"
            for name in found:
                with safe_open(out / name, framework="pt") as file:
                    assert len(file.keys()) >= len(tiny.shapes())
            half_way += any(finished(out)) if out.exists() else 0
            if not end:  # it came to its end: from the beginning
                shutil.rmtree(out)
                shutil.rmtree(tmp_path / "reports")
            elif kills % 2 and out.exists():
                lose_power(out)
        assert server.kill_after(None) == 0
    assert server.process.returncode == 0
    assert tiny.files(out) == unbroken
    assert half_way > KILLS / 10  # that many times there was something to go on with
