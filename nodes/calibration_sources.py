"""Where the numbers of Calibration Summary come from: a session, or a log or summary of the original, one for each expert."""
import hashlib
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from ..engine.calibration import log, summary, tell
from ..engine.calibration.by_pass import by_pass
from ..engine.calibration.gather import Gathered, gather
from ..engine.calibration.run import RUNS
from ..engine.calibration.session import Session
from ..engine.calibration.summary import PERCENTILES, summarize
from ..engine.errors import RecipeError
from ..engine.plans.scales_summary import read_summary, rows_of
from . import calibration_files, plan_files
from .plan_files import CALIBRATION, NONE

SUMMARY = ".json"
ENDINGS = (SUMMARY, *log.ENDINGS)
MODEL, PAIR = "model", ("high_noise", "low_noise")  # role of a model of one file; of a pair
UNKNOWN = "what it was recorded on is not known"


@dataclass(frozen=True)
class Source:
    """summary: of one expert; stem: name for the files that are made of it; lines: what to know; gathered: what a session recorded,
    None for a file; is_written: the summary is itself that file."""

    summary: Mapping
    stem: str
    lines: tuple[str, ...] = ()
    gathered: Gathered | None = None
    is_written: bool = False

    @property
    def rows(self) -> Sequence[Mapping]:
        return self.summary["layers"]


def files() -> list[str]:
    """Logs and summaries in the calibration folder."""
    folder = calibration_files.root()
    return [name for name in plan_files.names(CALIBRATION, ENDINGS) if os.path.isfile(os.path.join(folder, name))]


def of_file(role: str, name: str, percentile: float | None) -> Source:
    """A log or a summary of the original. percentile: one more for a log; a summary has what it has. Raises RecipeError."""
    if name not in files():
        raise RecipeError(f"{name}: no such log or summary in user/default/wan22_master/calibration; choose it again in the list")
    path = os.path.join(calibration_files.root(), name)
    if name.lower().endswith(SUMMARY):
        found = read_summary(path)
        rows = list(rows_of(found).values())
        said = f"{role}: summary {name}, {len(rows)} layers; {UNKNOWN}"
        return Source({**found, "layers": rows}, name[:-len(SUMMARY)].removesuffix("_summary"), (said,), is_written=True)
    read = log.read(path)
    left = [(read.provided, "give a scale that was not measured"), (read.foreign, "are no line of such a log"),
            (read.broken, "tell an input that is not finite")]
    lines = (f"{role}: log {name}, {_calls(read)}; {UNKNOWN}",
             *(f"{role}: {count} lines of the log are left out: they {why}" for count, why in left if count))
    return Source(summarize(summary.of_log(read), _columns(percentile)), _stem(name), lines)


def of_session(session: Session, roles: Sequence[str], percentile: float | None,
               known: Collection[str]) -> tuple[dict[str, Source], list[str]]:
    """Role -> what a session recorded of it, and what to know. roles: with runs; known: of which it need have none."""
    gathered = {role: gather(session, role) for role in roles}
    passes = {role: by_pass(each) for role, each in gathered.items()}
    summaries = {role: summarize(summary.of_session(each), _columns(percentile)) for role, each in passes.items()}
    found = {role: Source(summaries[role], f"{session.name}_{role}", gathered=each) for role, each in gathered.items()}
    return found, tell.about(session, gathered, passes, known)


def collect(session: Session | None, logs: tuple[str, str], wanted: Sequence[str],
            percentile: float | None) -> tuple[dict[str, Source], list[str]]:
    """Role -> where its numbers come from, and what to know. A file goes before the session.

    logs: of the high-noise expert and of the low one; wanted: roles of the model, none: all there are. Raises RecipeError when
    there is nothing to sum up.
    """
    recorded = [] if session is None else list(dict.fromkeys(run.role for run in session.runs() if run.files))
    chosen = chosen_files(*logs, wanted or recorded)
    found, lines = {}, []
    if roles := [role for role in wanted or recorded if role in recorded and role not in chosen]:
        foreign = [role for role in PAIR if wanted and role not in wanted]
        found, lines = of_session(session, roles, percentile, {*chosen, *foreign})
    if list(chosen) == [PAIR[0]] and not (wanted or recorded):             # nothing says that there is a second expert
        lines.append(f"{chosen[PAIR[0]]} is taken as {PAIR[0]}; connect dit for a model of one file")
    for role, name in chosen.items():
        found[role] = of_file(role, name, percentile)
        lines += found[role].lines
    if not found:
        there = "no session is connected" if session is None else (
            f"session {session.name} has runs of {' and '.join(recorded) or 'nothing'}, not of {' or '.join(wanted) or 'a model'}")
        raise RecipeError(f"calibration summary: expected a calibration, but {there}; connect Calibrate, and the sampler's latent "
                          "to after, or choose a session or a log")
    return {role: found[role] for role in wanted or found if role in found}, lines


def chosen_files(log_high: str, log_low: str, roles: Sequence[str]) -> dict[str, str]:
    """Role -> file that is chosen for it. roles: of the model or session; without any, the experts of a pair."""
    by_role = {PAIR[0]: log_high, PAIR[1]: log_low, MODEL: log_high}
    found = {role: by_role[role] for role in roles or PAIR if by_role.get(role, NONE) != NONE}
    unused = [name for name in (log_high, log_low) if name not in {NONE, *found.values()}]
    if unused:
        raise RecipeError(f"calibration summary: {unused[0]} is chosen for an expert that is not there, there is "
                          f"{' and '.join(roles)}; choose it in the other list")
    return found


def state(names: Sequence[str]) -> str:
    """Changes when a file of a run of these sessions does: SHA-256 of their names, sizes and times."""
    digest = hashlib.sha256()
    for name in names:
        for folder, _, listed in sorted(os.walk(os.path.join(calibration_files.root(), name, RUNS))):
            for file in sorted(listed):
                path = os.path.join(folder, file)
                with suppress(FileNotFoundError):                          # a run that is going on replaces its files
                    status = os.stat(path)
                    digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _columns(percentile: float | None) -> tuple[float, ...]:
    return PERCENTILES if percentile is None else (*PERCENTILES, percentile)


def _calls(read: log.Log) -> str:
    """A call has a line for each layer that it reached."""
    counts = sorted({len(values) for values in read.amax.values()})
    return f"{' to '.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} calls of each of {len(read.amax)} layers"


def _stem(name: str) -> str:
    """A log's name without its endings."""
    while (parts := os.path.splitext(name))[1].lower() in log.ENDINGS:
        name = parts[0]
    return name
