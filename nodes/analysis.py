"""The node that compares the LoRAs of a merge with each other, from their files alone, and draws it."""
import json
from dataclasses import replace
from pathlib import Path

from comfy_api.latest import io

from ..engine.analysis.run import analyse
from ..engine.jobs.plan import plan_recipe
from . import sockets
from .analysis_plot import draw
from .analysis_text import for_browser, summary
from .judge import finite
from .progress import stoppable, watched
from .quantize import ALL, EXPERTS, chosen_roles
from .recipes import recipe_of, reports_folder


class Wan22LoraAnalysis(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Wan22LoraAnalysis",
            display_name="LoRA Analysis (Wan 2.2)",
            category="Wan 2.2 Master/2 merge",
            description="Compares the LoRAs of a merge before anything is merged: which pull together, which against each other "
                        "beyond chance, in which blocks, and how far they would move the model. Reads the LoRA files alone, no "
                        "weight of the base. Deltas are compared as trained, at their strengths, before any gate.",
            search_aliases=["lora conflict", "lora analysis", "overlap", "interference", "cosine", "compare loras"],
            inputs=[
                sockets.Dit.Input("dit", tooltip="The model with its LoRAs, from Inject."),
                io.Combo.Input("experts", options=list(EXPERTS), default=ALL,
                               tooltip="Which experts' LoRAs are compared. all: every one that is loaded."),
            ],
            outputs=[
                io.Image.Output(display_name="picture", tooltip="Pair matrix and block strips as a picture."),
                io.String.Output(display_name="report", tooltip="Norms, cosines, overlaps and conflicts, as JSON."),
                sockets.Dit.Output(display_name="dit", tooltip="The same model, for what comes next."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, dit, experts) -> io.NodeOutput:
        roles = chosen_roles(dit, experts)
        compared = replace(dit, experts=tuple(row for row in dit.experts if row[0] in roles))
        recipe, reports = recipe_of(compared, device="cpu"), Path(reports_folder())  # the factors are multiplied on the processor
        with (stoppable() as wish, plan_recipe(recipe, reports, should_stop=wish) as plan,
              watched(cls.hidden.unique_id, "cpu") as watch):
            report = finite(analyse(plan, reports=reports, should_stop=watch.should_stop, on_progress=watch.on_progress))
        shown = {"text": (summary(report),), "wan22_conflicts": (for_browser(report),)}
        return io.NodeOutput(draw(report), json.dumps(report), dit, ui=shown)
