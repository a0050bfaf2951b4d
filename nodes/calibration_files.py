"""The folder of calibration sessions, and names of sessions that a widget gives: each is checked, and stays in that folder."""
import os

from ..engine.calibration.session import Session, sessions
from ..engine.errors import PlanError, RecipeError
from ..engine.system import legal_name
from .plan_files import CALIBRATION, folder_of

SHOWN = 5                                          # names of sessions in an error


def root() -> str:
    """The folder that sessions lie in, beside the summaries that a person puts there."""
    return folder_of(CALIBRATION)


def names() -> list[str]:
    """Sessions that are there."""
    return sessions(root()) if os.path.isdir(root()) else []


def create(name: str) -> Session:
    """The session of that name, there already or new. Raises PlanError for a name that some system forbids, or that a file has."""
    bare = legal_name(name.strip())
    if os.path.isfile(os.path.join(root(), bare)):
        raise PlanError(f"session {bare!r}: expected a new name or a session's, found a file of that name; choose another")
    return Session.create(root(), bare)


def folder(name: str) -> str:
    """Folder of a session that is there. Raises RecipeError when it is not."""
    there = names()
    if name not in there:
        found = ", ".join(there[:SHOWN]) + (" and more" if len(there) > SHOWN else "") or "none"
        raise RecipeError(f"session {name!r}: expected one in user/default/wan22_master/calibration, found {found}; choose one of "
                          "these, or record it with Calibrate")
    return os.path.join(root(), name)
