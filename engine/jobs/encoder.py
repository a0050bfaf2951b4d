"""Which code encodes GGUF's blocks in a job: what the job was begun with, to its end.

numba and torch write the same bytes here; a file is all the same not begun by one and finished by the other.
"""
from dataclasses import replace

import torch

from ...quant.gguf.families import BACKENDS, chosen
from ..errors import PlanError
from ..precision import GGUF, Forms
from . import job as jobs
from .targets import Target


def encoded_as_begun(forms: Forms, target: Target, device: torch.device) -> Forms:
    """The forms of an output with its encoder named: that of the unfinished file, else what this machine has.

    Raises PlanError where an unfinished file needs numba, which is not here.
    """
    if forms.container != GGUF:
        return forms
    here, job = chosen(device), jobs.load(target.path) if target.state == "resume" else None
    begun = job.output.get("encoder", here) if job is not None else here
    if begun not in BACKENDS or (begun == "numba" and here != "numba"):
        raise PlanError(f"{target.path}: begun with the encoder {begun}, and here is {here}; install numba again, or delete the "
                        f"unfinished file ({jobs.PART} and {jobs.JOB})")
    return replace(forms, options=replace(forms.options, backend=begun))
