"""Whether a calibration recorded on one subject serves another, and what the user should know where the two differ."""
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .subject_record import BARE, Subject

if TYPE_CHECKING:
    from .run import Run

SURENESS = ("sha256", "sample", "header", "name")  # of a base's words, the surest first
SURE = ("sha256", "sample")                        # two models of one layout have the same header
EXACT = ("bf16", "fp16", "fp32")                   # what models are made in: nothing to tell
# Relative error of gaussian weights, which is that of a layer's output on white inputs: quant/formats here, 1024 x 1024; nvfp4 as
# other encoders make it (quant/nvfp4.py); GGUF as docs/log.md has it at 5120 x 5120.
COSTS = {"Q8_0": 0.0054, "int8_tensorwise": 0.0079, "Q6_K": 0.017, "float8_e4m3fn": 0.026, "mxfp8": 0.027, "Q5_1": 0.033,
         "Q5_K": 0.034, "Q5_0": 0.040, "float8_e5m2": 0.053, "Q4_1": 0.069, "Q4_K": 0.070, "asym_w4a8_int8": 0.071,
         "IQ4_NL": 0.073, "IQ4_XS": 0.074, "Q4_0": 0.081, "nvfp4": 0.095, "convrot_w4a4": 0.113, "Q3_K": 0.144, "Q2_K": 0.259}
OTHER_RULES = ("the LoRAs and strengths are those that were recorded, but they are merged by other rules (methods, combination, "
               "factors by block, or checkpoints mixed in)")

Loras = tuple[tuple[str, str, float], ...]


def compare(recorded: Subject, wanted: Subject) -> tuple[list[str], list[str]]:
    """(errors, warnings): what keeps a record from serving, and what to tell where it may.

    Another base is an error, which a caller may let the user allow, and says how; other LoRAs, strengths or rules, another task or
    size, and another format that ran are warnings that name the difference.
    """
    errors, loras, warnings = _differences(recorded, wanted)
    return errors, loras + warnings


def compare_runs(runs: "Iterable[Run]", wanted: Subject) -> tuple[list[str], list[str]]:
    """`compare` of what each of one expert's runs was recorded on: what is so in some of them alone says in how many."""
    subjects = Counter(run.subject for run in runs)
    total, (errors, loras, warnings) = subjects.total(), (Counter(), Counter(), Counter())
    for subject, count in subjects.items():
        wrong, other, rest = _differences(subject, wanted)
        errors += Counter(dict.fromkeys(wrong, count))
        loras += Counter({tuple(other): count} if other else {})
        warnings += Counter(dict.fromkeys(rest, count))
    said = []
    for lines, count in loras.items():
        said += lines if count == total else [f"{count} of {total} runs were recorded with other LoRAs: {'; '.join(lines)}"]
    return _counted(errors, total), said + _counted(warnings, total)


def _counted(lines: Counter, total: int) -> list[str]:
    return [line if count == total else f"{count} of {total} runs: {line}" for line, count in lines.items()]


def _differences(recorded: Subject, wanted: Subject) -> tuple[list[str], list[str], list[str]]:
    """(errors, other LoRAs and strengths, other warnings)."""
    errors, loras, warnings = [], [], []
    is_same, is_sure, differing = _best(recorded, wanted)
    if not is_same:
        errors.append(f"expected a record of {wanted.base_name}, found one of {recorded.base_name}, another base"
                      f"{'' if is_sure else ' by its name'}")
    elif differing is not None:
        loras = _loras(*differing)
        warnings += [] if loras else [OTHER_RULES]
    if is_same and not is_sure:
        warnings.append(f"the base is known by its name and layout alone, {wanted.base_name}: it may be another file")
    warnings += [f"recorded on {what} {before}, this is {now}" for what, before, now in (
        ("task", recorded.task, wanted.task), ("size", recorded.size, wanted.size)) if before and now and before != now]
    return errors, loras, warnings + _stored_as(recorded, wanted)


def _best(recorded: Subject, wanted: Subject) -> tuple[bool, bool, tuple[Loras, Loras] | None]:
    """(whether the base is the same, whether that is sure, the LoRAs of both where the merge is another), by the way of telling
    both that agrees best."""
    found = []
    for base, recipe, loras in _tellings(recorded):
        for other, other_recipe, other_loras in _tellings(wanted):
            is_same, is_sure = _same_base(base, other)
            is_one = recipe == other_recipe
            found.append((is_same and is_one, is_same, is_sure, None if is_one else (loras, other_loras)))
    _, is_same, is_sure, differing = max(found, key=lambda each: each[:3] if each[1] else (False, False, False))
    return is_same, is_sure, differing


def _tellings(subject: Subject) -> list[tuple[str, str, Loras]]:
    """(base, recipe, LoRAs): as merged from a base, and as a file that is a base itself."""
    return [(subject.base, subject.recipe, subject.loras), *([(subject.itself, BARE, ())] if subject.itself else [])]


def _same_base(one: str, other: str) -> tuple[bool, bool]:
    """(whether it is the same, whether that is sure), by the surest word that both have."""
    first, second = (dict(word.split(":", 1) for word in each.split() if ":" in word) for each in (one, other))
    kind = next((kind for kind in SURENESS if kind in first and kind in second), None)
    return kind is not None and first[kind] == second[kind], kind in SURE


def _loras(recorded: Loras, wanted: Loras) -> list[str]:
    """In which LoRAs and strengths two recipes on one base differ; none where they do in rules alone."""
    (before, now), said = (_strengths(recorded), _strengths(wanted)), []
    for sha256, (name, strengths) in {**now, **before}.items():
        if sha256 not in now:
            said.append(f"{name} at {_shown(strengths)} is in what was recorded, not in this merge")
        elif sha256 not in before:
            said.append(f"{name} at {_shown(strengths)} is in this merge, not in what was recorded")
        elif strengths != now[sha256][1]:
            said.append(f"{name}: recorded at strength {_shown(strengths)}, merged here at {_shown(now[sha256][1])}")
    return said


def _strengths(loras: Loras) -> dict[str, tuple[str, list[float]]]:
    """sha256 -> name, and its strength in each place where it is merged."""
    found: dict[str, tuple[str, list[float]]] = {}
    for name, sha256, strength in loras:
        found.setdefault(sha256, (name, []))[1].append(strength)
    return {sha256: (name, sorted(strengths)) for sha256, (name, strengths) in found.items()}


def _shown(strengths: list[float]) -> str:
    return " and ".join(f"{strength:g}" for strength in strengths)


def _stored_as(recorded: Subject, wanted: Subject) -> list[str]:
    before, now = recorded.stored_as, wanted.stored_as
    if not before or before == now or before in EXACT:
        return []
    off = f"about {COSTS[before]:.1%} off" if before in COSTS else "off by what that format loses"
    cost = f"each layer's output was {off}"
    return [f"recorded on {before} weights, this is {now or 'another format'}: {cost} while it ran, and so are the inputs of the "
            "layers after it"]


def unlike(runs: "Iterable[Run]") -> list[str]:
    """In what the runs of one expert differ that changes its inputs, with how many are of which kind."""
    said = []
    told = {"base": [run.subject.base_name for run in runs], "steps": [run.facts.steps for run in runs],
            "cfg": [run.facts.cfg for run in runs], "task": [run.subject.task for run in runs],
            "weights": [run.subject.stored_as for run in runs], "merge": [run.subject.recipe[:8] or "bare" for run in runs]}
    for what, values in told.items():
        counts = Counter("unknown" if value in (None, "") else f"{value:g}" if isinstance(value, float) else str(value)
                         for value in values)
        if len(counts) > 1:
            said.append(f"runs differ in {what}: {', '.join(f'{value} ({count})' for value, count in counts.items())}")
    return said
