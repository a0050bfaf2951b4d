"""Makes report.json: the meter's report and the LoRA analysis of a small synthetic pair. Run it only when the schema changes.

    python tests/golden/make_report.py

Times and memory are zeroed, because they differ on every machine. The second pass is strong enough for a VOLATILE low half; a
distillation LoRA, known by its name, has a needle of its own.
"""
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import conftest  # noqa: F401 - makes the checkout importable as wan22_master
from wan22_master.engine.analysis.run import analyse
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.engine.jobs.run import measure
from wan22_master.engine.recipes.recipe import parse
from wan22_master.engine.synthetic import Sizes, write_lora, write_set

SIZES = Sizes(dim=128, ffn=256, blocks=4, rank=8)
UNKNOWN = {"seconds": 0.0, "peak_bytes": 0}


def whole_report(folder: Path) -> dict:
    """Meter and analysis of the same merge, in one report. folder: empty; the models are written into it."""
    made = write_set(folder, SIZES, seed=1)
    lightning = {role: str(folder / f"lightx2v_4steps_{role}.safetensors") for role in made.experts}
    for role, path in lightning.items():
        write_lora(path, SIZES, "native", f"1 lightning {role}")
    recipe = parse({"version": 1, "title": "golden", "experts": made.experts, "passes": [
        {"name": "Pass 1", "loras": [{"files": made.native_lora, "strength": {"high_noise": 0.6, "low_noise": 1.0}},
                                     {"files": lightning, "strength": {"high_noise": 1.0, "low_noise": 1.0}}]},
        {"name": "Pass 2", "loras": [{"files": made.kohya_lora, "strength": {"high_noise": 0.3, "low_noise": 3.0}}]},
    ]})
    with plan_recipe(recipe, folder / "reports") as plan:
        report = measure(plan, reports=folder / "reports")
        analysis = analyse(plan, reports=folder / "reports")
    sections = [expert["conflicts"] for expert in analysis["experts"]]
    return report | {"device": "cpu", "experts": [{**expert, **UNKNOWN, "conflicts": section}
                                                  for expert, section in zip(report["experts"], sections, strict=True)]}


def main() -> None:
    """Write report.json beside this file."""
    with tempfile.TemporaryDirectory() as folder:
        text = json.dumps(whole_report(Path(folder)), indent=1, sort_keys=True)
        Path(__file__).with_name("report.json").write_text(text.replace(folder, "/models") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
