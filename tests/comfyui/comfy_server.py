"""A real ComfyUI server for tests: its own base directory, a free port, CPU; prompts go in, histories and log lines come out."""
import json
import os
import re
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACK = HERE.parents[1]
MODELS = ("diffusion_models", "unet", "loras", "checkpoints", "vae", "text_encoders")


def find_comfyui() -> tuple[Path, Path] | None:
    """(checkout, its Python), by $COMFYUI_PATH or in the home; None when there is none."""
    root = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    python = root / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    return (root, python) if (root / "main.py").exists() and python.exists() else None


class Server:
    """Start with `with`; `base` is its base directory, filled before the start."""

    def __init__(self, base: Path):
        self.root, self.python = find_comfyui()
        self.base, self.log_path = base, base / "server.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        for name in MODELS:
            (base / "models" / name).mkdir(parents=True, exist_ok=True)
        (base / "custom_nodes").mkdir(exist_ok=True)
        (base / "custom_nodes" / "wan22-master").symlink_to(PACK, target_is_directory=True)
        (base / "custom_nodes" / "wan22-testnodes").symlink_to(HERE / "testnodes", target_is_directory=True)

    def __enter__(self) -> "Server":
        command = [self.python, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", self.url.rpartition(":")[2],
                   "--base-directory", self.base, "--database-url", "sqlite:///:memory:", "--disable-api-nodes"]
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(command, cwd=self.root, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                            env={**os.environ, "PYTHONUNBUFFERED": "1"})
        give_up = time.monotonic() + 180
        while self.get("/system_stats", patient=True) is None:
            if self.process.poll() is not None or time.monotonic() > give_up:
                self.__exit__()
                raise RuntimeError(f"ComfyUI did not start: {self.log()[-3000:]}")
            time.sleep(0.5)
        return self

    def __exit__(self, *error) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log(self) -> str:
        return re.sub(r"\x1b\[[\d;]*m", "", self.log_path.read_text(encoding="utf-8", errors="replace"))

    def models(self, folder: str = "diffusion_models") -> Path:
        return self.base / "models" / folder

    def get(self, path: str, *, patient: bool = False):
        """JSON of a GET; None when the server is not there yet and `patient`."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=60) as answer:
                return json.load(answer)
        except OSError:
            if patient:
                return None
            raise

    def read(self, path: str) -> bytes:
        """Body of a GET."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return answer.read()

    def post(self, path: str, body: dict):
        """(status, JSON) of a POST."""
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
                return answer.status, json.loads(text) if text else None
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, json.load(refused)

    def queue(self, prompt: dict) -> str:
        """Queue a graph in API form; its id. Raises AssertionError when it is refused."""
        status, answer = self.post("/prompt", {"prompt": prompt})
        assert status == 200, answer
        return answer["prompt_id"]

    def wait(self, prompt_id: str, seconds: float = 300) -> dict:
        """The history entry of a finished prompt."""
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            found = self.get(f"/history/{prompt_id}").get(prompt_id)
            if found:
                return found
            time.sleep(0.05)
        raise TimeoutError(f"{prompt_id} is not done after {seconds} s")

    def run(self, prompt: dict) -> dict:
        """Outputs of a graph by node id. Raises AssertionError when it fails."""
        entry = self.wait(self.queue(prompt))
        assert entry["status"]["status_str"] == "success", error_of(entry)
        return entry["outputs"]

    def fail(self, prompt: dict) -> str:
        """The message a graph fails with, by a node's error or already when it is queued."""
        status, answer = self.post("/prompt", {"prompt": prompt})
        if status != 200:
            return json.dumps(answer)
        entry = self.wait(answer["prompt_id"])
        assert entry["status"]["status_str"] == "error", "expected an error, but it ran"
        return error_of(entry)

    def free(self) -> None:
        """Forget all node outputs and models."""
        self.post("/free", {"unload_models": True, "free_memory": True})
        time.sleep(0.3)                            # the worker is woken by it, and answers nobody


def error_of(entry: dict) -> str:
    """Message of a failed or interrupted prompt."""
    told = [message for kind, message in entry["status"]["messages"] if kind in {"execution_error", "execution_interrupted"}]
    return str(told[-1].get("exception_message", "interrupted")) if told else ""


def text_of(outputs: dict, node: str) -> str:
    """What a node wrote on itself."""
    return "\n".join(outputs[node]["text"])
