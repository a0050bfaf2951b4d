"""The meter's report under the thresholds of a node, fit to be sent to a browser, and in words."""
import math

from ..engine.merging.meter import status

WORDS = ("STABLE", "SATURATED", "VOLATILE")        # from best to worst


def judged(report: dict, stable_below: float, volatile_above: float, top_k: int) -> dict:
    """The report with these thresholds in place of the default ones; the argument is not modified."""
    experts = []
    for expert in report["experts"]:
        meter = expert["meter"]
        experts.append({**expert, "meter": {
            **meter, "status": status(judged_shift(meter), stable_below, volatile_above), "stable_below": stable_below,
            "volatile_above": volatile_above, "top": meter["top"][:top_k]}})
    return finite({**report, "experts": experts})


def judged_shift(meter: dict) -> float | None:
    """The shift that the word judges: without distillation LoRAs, which are one exact change of the sampler's path. None: infinite.

    A reading of a version that knew one needle only has the shift of all.
    """
    return meter["needles"]["rest"] if "needles" in meter else meter["shift"]


def side_needles(meter: dict) -> dict[str, float | None]:
    """What stands beside the judged shift where a distillation LoRA is merged: its own shift and that of all; else nothing."""
    if "needles" not in meter or not any(lora["protected"] for lora in meter["loras"]):
        return {}
    return {name: meter["needles"][name] for name in ("distillation", "all")}


def for_browser(report: dict) -> dict:
    """What web/meter.js draws; the recipe and its folders stay here."""
    experts = [{name: expert[name] for name in ("role", "name", "meter")} for expert in report["experts"]]
    return {"version": report["version"], "experts": experts}


def finite(value):
    """`value` with infinities as None: JSON has no word for them, and a browser refuses the whole message."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: float | None) -> str:
    """A shift in words; None stands for one that has no finite value."""
    return "unknown" if value is None else f"{value:.4f}"


def summary(report: dict) -> str:
    """A line per expert, for the history and for programs that read no picture."""
    lines = []
    for expert in report["experts"]:
        meter = expert["meter"]
        name = "" if expert["role"] == "model" else f"{expert['role']}: "
        touched = number(meter["shift_touched"])
        beside = "".join(f", {each} {number(shift)}" for each, shift in side_needles(meter).items())
        shift = f"shift {number(judged_shift(meter))}{' without distillation' if beside else ''}{beside}"
        lines.append(f"{name}{meter['status']}, {shift}, over touched layers alone {touched}")
    return "\n".join(lines)
