"""A session on the wire as what the engine measures with: inputs by expert, checked against the model, and files of weights."""
import os
from collections.abc import Mapping

from ..engine.bases.source import open_source
from ..engine.calibration import sensitivity_json
from ..engine.calibration.compare import compare_runs
from ..engine.calibration.gather import gather
from ..engine.calibration.layer_inputs import Inputs
from ..engine.calibration.run import RUNS
from ..engine.calibration.sensitivity_json import WEIGHTS, path_of
from ..engine.calibration.session import Session
from ..engine.calibration.subject import sample_digest, subject_of
from ..engine.errors import RecipeError, SourceError
from ..engine.plans.input_scales import MARGIN
from . import freshness
from .handles import Calibration


def inputs_of(calibration: Calibration, roles: tuple[str, ...], margin: float = MARGIN) -> dict[str, Inputs]:
    """Role -> inputs, of the experts that the session has runs of. Raises RecipeError where it has none of any."""
    session, found = Session.open(calibration.folder), {}
    for role in roles:
        runs = [run for run in session.runs(role) if run.steps]
        if runs:
            prompts = len({run.facts.prompt_id or run.folder for run in runs})
            found[role] = Inputs(gather(session, role), margin, session=session.name, prompts=prompts)
    if not found:
        there = " and ".join(sorted({run.role for run in session.runs()})) or "none"
        raise RecipeError(f"calibration {session.name}: expected runs of {' or '.join(roles)}, found {there}; sample prompts "
                          "through Calibrate with the models of this dit first")
    return found


def checked(calibration: Calibration, plan, roles: tuple[str, ...], *, allow: bool) -> list[str]:
    """What the user should know of the model against what each run was recorded on, a line each. plan: jobs.plan.Plan.

    Raises SourceError for another base in any run that counts, unless `allow`.
    """
    session, lines = Session.open(calibration.folder), []
    for expert in (expert for expert in plan.experts if expert.role in roles):
        runs = [run for run in session.runs(expert.role) if run.steps]
        if not runs:
            continue
        errors, warnings = compare_runs(runs, subject_of(expert, plan.recipe))
        if errors and not allow:
            raise SourceError(f"calibration {session.name}: {expert.role}: {'; '.join(errors)}; calibrate this model, or turn "
                              "allow_other_base on where the node has it")
        lines += [f"{expert.role}: {each}" for each in (*errors, *warnings)]
    return lines


def weights_of(calibration: Calibration, roles: tuple[str, ...],
               models: Mapping[str, str] | None = None) -> tuple[dict[str, str], list[str]]:
    """(role -> path of the imatrix that Sensitivity wrote, lines about it). models: role -> path of the base that is quantized.

    Raises RecipeError where it was not written, or something was recorded since, SourceError where it was made with another base,
    HeaderError where its JSON is damaged.
    """
    found, lines = {}, []
    for role, inputs in inputs_of(calibration, roles).items():
        said, path = sensitivity_json.read(calibration.folder, role), path_of(calibration.folder, role, WEIGHTS)
        if said is None or (said.weighed and not os.path.isfile(path)):
            raise RecipeError(f"quantize: calibration {calibration.name} has no weights of {role} yet: run Sensitivity on it first")
        if said.state != inputs.gathered.state:
            raise RecipeError(f"quantize: calibration {calibration.name} has grown since the weights of {role} were made: run "
                              "Sensitivity on it again")
        if said.weighed and role in (models or {}):
            _check_base(said.base, models[role], f"calibration {calibration.name}: {role}")
        if said.weighed:
            found[role] = path
            lines.append(f"{role}: columns of {said.weighed} layers weighed by calibration {calibration.name} of {said.samples} "
                         "prompts")
        else:
            lines.append(f"{role}: weighing columns helps in no layer of calibration {calibration.name}: all count alike")
    lines += [f"{role}: calibration {calibration.name} has no run of it: all columns count alike" for role in roles
              if not any(line.startswith(f"{role}:") for line in lines)]
    return found, lines


def _check_base(made_on: str, path: str, where: str) -> None:
    """T2V and I2V experts have the same names and widths, so weights of one fit the other, and are wrong there."""
    with open_source(path, allow_lossy=True) as source:
        if sample_digest(source) != made_on:
            raise SourceError(f"quantize: {where}: expected weights made with {os.path.basename(path)}, found those of another "
                              "base; run Sensitivity with this dit")


def remember(node: str, calibration: Calibration) -> None:
    """Let ComfyUI's cache forget what `node` made once the session has grown, or its weights are made anew."""
    runs = os.path.join(calibration.folder, RUNS)
    folders = [os.path.join(runs, name) for name in os.listdir(runs)] if os.path.isdir(runs) else []
    sensitivities = [path_of(calibration.folder, role, ending) for role in ("high_noise", "low_noise", "model")
                     for ending in (sensitivity_json.JSON, WEIGHTS)]
    freshness.remember(node, [runs, *folders, *sensitivities])
