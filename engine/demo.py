"""The job that ./start.sh runs: a synthetic pair and two LoRAs of real structure, merged, measured, quantized, checked."""
import os
from pathlib import Path

from safetensors import safe_open

from .synthetic import Sizes, write_set
from .system import write_json

SIZES = Sizes(dim=1536, ffn=8960, blocks=4, rank=32)  # width of Wan 1.3B, 4 of its 30 blocks: 0.42 GB an expert
MADE = "made.json"


def prepare(folder: str | os.PathLike, sizes: Sizes = SIZES) -> Path:
    """Write the models, LoRAs and recipe into `folder` unless an earlier demo did. Returns the path of the recipe."""
    folder = Path(folder)
    recipe, made = folder / "recipe.json", folder / "in" / MADE
    if not made.exists() or made.read_text(encoding="utf-8") != repr(sizes):
        files = write_set(folder / "in", sizes, seed=22)
        names = {name: {role: f"in/{Path(path).name}" for role, path in getattr(files, name).items()}
                 for name in ("experts", "native_lora", "kohya_lora")}
        write_json(recipe, {
            "version": 1, "title": "demo", "experts": names["experts"],
            "passes": [
                {"name": "motion", "method": "addition",
                    "loras": [{"files": names["native_lora"], "strength": {"low_noise": 0.8}}]},
                {"name": "style", "method": "classic", "loras": [{"files": names["kohya_lora"]}]},
            ],
            "outputs": [{"format": "float8_e4m3fn"}, {"format": "bf16"}],
            "save": {"folder": "out", "on_exists": "overwrite"},
        })
        made.write_text(repr(sizes), encoding="utf-8")
    return recipe


def check(report: dict) -> int:
    """Open every file of the report with the safetensors library and touch each tensor's slice. Returns the number of files."""
    paths = [out["path"] for expert in report["experts"] for out in expert["outputs"]]
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a dict
                file.get_slice(key).get_shape()
    return len(paths)
