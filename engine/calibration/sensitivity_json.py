"""The file `<role>_sensitivity.json`: how sensitive each layer is, in the schema of jorismak/convert_nvfp4 and beyond it.

    {"model": "Wan2.2 ...", "model_type": "t2v", "samples": 32,
     "layers": [{"layer": "blocks.3.ffn.2", "count": 64, "rel_rmse_mean": .09, "mean_abs_mean": .01, "clip_rate_mean": .03,
                 "max_abs": .5, "weighing_helps": true,
                 "formats": {"nvfp4": {"weights": .082, "weighted": .061, "rounded": .11}}}],
     "version": 1, "session": ..., "state": ..., ...}
The first four columns are the original's (analyze_input_precision_sensitivity.py), rows sorted by rel_rmse_mean as there: how well
inputs survive NVFP4. There inputs are random numbers and figures means over calls; here they are `count` tokens of the calibration,
as if of one call. `formats` holds output errors (layer_errors.py). What is unknown is null: NaN, most of the original's rows, is no
JSON.
"""
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import HeaderError
from ..system import read_json, write_json
from .layer_errors import LayerErrors

VERSION = 1
JSON, WEIGHTS = "sensitivity.json", "imatrix.gguf"   # after the role


@dataclass(frozen=True)
class Sensitivity:
    """What the file says of the whole. state: of the inputs that it was made of; weighed: layers that the imatrix holds;
    base: `sample_digest` of what the measured merge was made from."""

    model: str
    model_type: str
    samples: int
    session: str
    state: str
    margin: float
    weighed: int = 0
    base: str = ""
    notices: tuple[str, ...] = ()


def path_of(folder: str | os.PathLike, role: str, ending: str = JSON) -> str:
    """Of a file of one expert in a session's folder."""
    return os.path.join(folder, f"{role}_{ending}")


def rows_of(layers: Mapping[str, LayerErrors | None]) -> list[dict]:
    """The largest rel_rmse first, layers that were not seen last, otherwise in the model's order."""
    rows = [{"layer": layer, "count": 0, "rel_rmse_mean": None, "mean_abs_mean": None, "clip_rate_mean": None, "max_abs": None,
             "weighing_helps": None, "formats": {}} if found is None else
            {"layer": layer, "count": found.count, "rel_rmse_mean": found.rel_rmse, "mean_abs_mean": found.mean_abs,
             "clip_rate_mean": found.clip_rate, "max_abs": found.max_abs,
             "weighing_helps": None if found.gain is None else found.weighing_helps, "formats": found.to_json()["formats"]}
            for layer, found in layers.items()]
    return sorted(rows, key=lambda row: -1.0 if row["rel_rmse_mean"] is None else row["rel_rmse_mean"], reverse=True)


def write(folder: str | os.PathLike, role: str, said: Sensitivity, layers: Mapping[str, LayerErrors | None]) -> str:
    """Path of the file, written whole or not at all. Raises MergeError."""
    path = path_of(folder, role)
    write_json(path, {"model": said.model, "model_type": said.model_type, "samples": said.samples, "layers": rows_of(layers),
                      "version": VERSION, "session": said.session, "state": said.state, "margin": said.margin,
                      "weighed": said.weighed, "base": said.base, "notices": list(said.notices)})
    return path


def read(folder: str | os.PathLike, role: str) -> Sensitivity | None:
    """What `write` said of the whole; None where there is no file. Raises HeaderError for one that is not ours, or damaged."""
    path = path_of(folder, role)
    if not os.path.exists(path):
        return None
    found = read_json(path)
    texts, numbers = ("model", "model_type", "session", "state", "base"), ("samples", "weighed", "margin")
    kinds = {**dict.fromkeys(texts, str), **dict.fromkeys(numbers, int | float)}
    if not isinstance(found, dict) or found.get("version") != VERSION or not all(isinstance(found.get(name), kind)
                                                                                 for name, kind in kinds.items()):
        raise HeaderError(f"{path}: expected a sensitivity of version {VERSION}, found another file; run Sensitivity again")
    notices: Sequence = found.get("notices") or ()
    return Sensitivity(**{name: found[name] for name in (*texts, *numbers)}, notices=tuple(str(each) for each in notices))
