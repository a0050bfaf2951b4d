"""Whose columns are weighed in an output that names importances, by a calibration's file or another, in words."""
import os
from collections.abc import Mapping, Sequence

from ..engine.calibration import sensitivity_json
from ..engine.calibration.sensitivity_json import WEIGHTS
from ..engine.imatrix import read_imatrix
from ..engine.jobs.importance import weighing
from ..engine.recipes.output import Output
from .calibration_inputs import weights_of
from .handles import Calibration


def weights_in(calibration: Calibration, roles: tuple[str, ...],
               models: Mapping[str, str] | None = None) -> tuple[dict[str, str], list[str]]:
    """(role -> imatrix of a calibration, lines about experts without one). How much of one is used depends on the formats:
    `weighed_lines` tells that. models and errors: as of `weights_of`."""
    found, lines = weights_of(calibration, roles, models)
    return found, [line for line in lines if line.partition(":")[0] not in found]


def weighed_lines(output: Output, layers: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each expert that has a file: how many of its layers are weighed; where none is, why.

    layers: role -> block linears, in the model's order. Raises HeaderError, SourceError for a file that is no imatrix.
    """
    return [_line(output, role, layers[role]) for role in output.imatrix if role in layers]


def _line(output: Output, role: str, layers: Sequence[str]) -> str:
    path, who = output.imatrix[role], "" if role == "model" else f" of {role}"
    able, held = weighing(output, role, layers), read_imatrix(path)
    count = sum(f"{layer}.weight" in held for layer in able)
    if count:
        return f"columns of {count} of the {len(layers)} layers{who} weighed by {_source(path, role)}"
    if not able:
        return f"{_source(path, role)} is not used: no layer{who} is of a format that weighs columns"
    return f"{_source(path, role)} is not used: it holds none of the {len(able)} layers{who} whose formats weigh columns"


def _source(path: str, role: str) -> str:
    """A calibration by its name, another file by its own."""
    folder, name = os.path.split(path)
    said = sensitivity_json.read(folder, role) if name == f"{role}_{WEIGHTS}" else None
    return name if said is None else f"calibration {said.session} of {said.samples} prompts"
