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
    """The session that Calibrate is to record, there already or new. Raises PlanError, naming the widget, for a name that some
    system forbids, or that a file has."""
    try:
        bare = legal_name(name.strip())
    except PlanError as cause:
        raise PlanError(f"calibrate: session: {cause}") from None
    if os.path.isfile(os.path.join(root(), bare)):
        raise PlanError(f"calibrate: session: expected a new name or a session's, found a file of that name, {bare!r}; choose "
                        "another")
    return Session.create(root(), bare)


def folder(name: str) -> str:
    """Folder of a session that is there. Raises RecipeError when it is not."""
    there = names()
    if name not in there:
        found = ", ".join(there[:SHOWN]) + (" and more" if len(there) > SHOWN else "") or "none"
        raise RecipeError(f"session {name!r}: expected one in user/default/wan22_master/calibration, found {found}; choose one of "
                          "these, or record it with Calibrate")
    return os.path.join(root(), name)
