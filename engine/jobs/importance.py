"""How much the columns of each layer's input count, of an output that names an imatrix file: what formats weigh as they search."""
import os
from collections.abc import Sequence
from dataclasses import replace

import torch

from ...quant.formats import form_of, weighs
from ..errors import PlanError
from ..imatrix import check_imatrix, read_imatrix
from ..precision import KEEP
from ..recipes.output import Output
from .experts import ExpertPlan
from .stored_as import forms_of


def files_of(outputs: tuple[Output, ...]) -> list[str]:
    """The imatrix files that outputs name. Raises PlanError for one that is not there."""
    paths = [path for output in outputs for path in output.imatrix.values()]
    missing = [path for path in paths if not os.path.isfile(path)]
    if missing:
        raise PlanError(f"{missing[0]}: expected an imatrix file, found none; choose it again, or leave it out")
    return paths


def pinned(output: Output, sha256: dict[str, str]) -> Output:
    """The output with the hashes of its imatrix files. Raises PlanError where the recipe was made with another file."""
    found = {role: sha256[path] for role, path in output.imatrix.items()}
    for role, wanted in output.imatrix_sha256.items():
        if found.get(role, wanted) != wanted:
            raise PlanError(f"{output.imatrix[role]}: expected the imatrix of SHA-256 {wanted}, found {found[role]}; choose the "
                            "file that the recipe was made with, or take imatrix_sha256 out of it")
    return replace(output, imatrix_sha256=found)


def weighing(output: Output, role: str, layers: Sequence[str]) -> list[str]:
    """Of an expert's block linears, those whose format weighs columns, as far as names tell: where rows need a GGUF type of smaller
    blocks, it is held to be the one asked for. What the rules of a mix name weighs where its default does."""
    forms = output.forms(role)
    if not forms.is_quantized:
        return []
    names = {layer: forms.layers.get(layer, forms.default) for layer in layers}
    return [layer for layer, name in names.items() if name != KEEP and weighs(form_of(name, forms.options))]


def importances(expert: ExpertPlan, output: Output) -> tuple[dict[str, torch.Tensor], list[str]]:
    """(key of a weight whose format searches -> (in_features,) float32, as `form.quantize` takes it; notices). Both are empty where
    the output names no file.

    Raises HeaderError for a damaged file, SourceError for one that is no imatrix, is of another model, or holds what is no
    importance.
    """
    path = output.imatrix.get(expert.role)
    if path is None:
        return {}, [f"{output.label}: {expert.role} has no imatrix; all its columns count alike"] if output.imatrix else []
    forms, name = forms_of(expert, output), os.path.basename(path)
    quantized = [key for key in expert.order if forms.name(key, expert.specs[key])]
    wanted = {key: expert.specs[key] for key in quantized if weighs(forms.of(key, expert.specs[key]))}
    if not wanted:
        return {}, [f"{name}: not used: no layer of {output.label} is of a format that weighs columns"]
    held = read_imatrix(path)
    if not wanted.keys() & held and held.keys() & set(quantized):            # of this model; a calibration leaves out many
        return {}, [f"{name}: not used: it holds none of the {len(wanted)} layers of {output.label} whose formats weigh columns"]
    found, notices = check_imatrix(held, wanted, name)
    idle = len(quantized) - len(wanted)
    return found, notices + ([f"{name}: {idle} layers of {output.label} are of formats that weigh nothing"] if idle else [])
