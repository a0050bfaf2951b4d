"""The node that measures how far the merge moves the model, and draws it."""
import json
from dataclasses import replace
from pathlib import Path

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker

from ..engine.errors import RecipeError
from ..engine.jobs.plan import plan_recipe
from ..engine.jobs.run import measure
from ..engine.merging.meter import STABLE_BELOW, VOLATILE_ABOVE
from . import sockets
from .judge import WORDS, for_browser, judged, judged_shift, summary
from .plot import draw
from .progress import device_for, stoppable, watched
from .quantize import ALL, EXPERTS, chosen_roles
from .recipes import recipe_of, reports_folder


class Wan22StabilityMeter(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        threshold = {"min": 0.0, "max": 1.0, "step": 0.001, "advanced": True}
        return io.Schema(
            node_id="Wan22StabilityMeter",
            display_name="Stability Meter",
            category="Wan 2.2 Master/2 merge",
            description="Measures how far the merge moves the model: the size of all changes over the size of the block weights, "
                        "before rounding; per expert, LoRA, pass, block and kind of layer. Distillation LoRAs have a needle of "
                        "their own, and the word judges the rest. Reads the base once and writes nothing.",
            search_aliases=["stability", "meter", "shift", "overcooked", "lora strength", "analysis", "heat map"],
            inputs=[
                sockets.Dit.Input("dit", tooltip="The merged model, from Inject."),
                io.Combo.Input("experts", options=list(EXPERTS), default=ALL,
                               tooltip="Which experts are measured. all: every one that is loaded."),
                io.Combo.Input("on_volatile", options=["report", "block"], default="report",
                               tooltip="block: what hangs on dit does not run when the merge is VOLATILE."),
                io.Float.Input("stable_below", default=STABLE_BELOW, **threshold, tooltip="STABLE below this shift."),
                io.Float.Input("volatile_above", default=VOLATILE_ABOVE, **threshold,
                               tooltip="VOLATILE above this shift; SATURATED between the two."),
                io.Int.Input("top_k", default=12, min=1, max=12, advanced=True,
                             tooltip="How many of the most changed layers are listed."),
            ],
            outputs=[
                sockets.Dit.Output(display_name="dit", tooltip="The same model, for Quantize."),
                io.Float.Output(display_name="score_high / score", tooltip="Shift of the high-noise expert, or of the one model, "
                                "without distillation LoRAs."),
                io.Float.Output(display_name="score_low", tooltip="Shift of the low-noise expert without distillation LoRAs; "
                                "0 when it was not measured."),
                io.String.Output(display_name="status", tooltip="STABLE, SATURATED or VOLATILE: the worst of the experts."),
                io.Image.Output(display_name="plot", tooltip="Gauge and heat strip as a picture."),
                io.String.Output(display_name="report", tooltip="Everything measured, as JSON."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, dit, experts, on_volatile, stable_below, volatile_above, top_k) -> io.NodeOutput:
        if stable_below > volatile_above:
            raise RecipeError(f"stability meter: stable_below {stable_below:g} is above volatile_above {volatile_above:g}")
        roles = chosen_roles(dit, experts)
        measured = replace(dit, experts=tuple(row for row in dit.experts if row[0] in roles))
        recipe, reports = recipe_of(measured, device=device_for("auto")), Path(reports_folder())
        with (stoppable() as wish, plan_recipe(recipe, reports, should_stop=wish) as plan,
              watched(cls.hidden.unique_id, plan.device.torch_device.type) as watch):
            report = measure(plan, reports=reports, should_stop=watch.should_stop, on_progress=watch.on_progress)
        report = judged(report, stable_below, volatile_above, top_k)
        meters = {expert["role"]: expert["meter"] for expert in report["experts"]}
        worst = max((meter["status"] for meter in meters.values()), key=WORDS.index)
        high, low = (next((judged_shift(meters[role]) for role in names if role in meters), 0.0)
                     for names in (("high_noise", "model"), ("low_noise",)))
        passed = dit
        if worst == WORDS[-1] and on_volatile == "block":
            passed = ExecutionBlocker(f"stability meter: VOLATILE, above {volatile_above:g}; lower the strengths, raise "
                                      "volatile_above, or set on_volatile to report")
        shown = {"text": (summary(report),), "wan22_report": (for_browser(report),)}
        return io.NodeOutput(passed, high, low, worst, draw(report), json.dumps(report), ui=shown)
