"""The node that decides which layer gets which format, says why, and draws it."""
import json
from dataclasses import replace
from pathlib import Path

from comfy_api.latest import io

from ..engine.jobs.plan import plan_recipe
from ..engine.jobs.solve import solve
from ..engine.plans.as_output import base_of
from ..engine.plans.plan import KEEP, PrecisionPlan, counts
from . import freshness, machine, plan_files, sockets
from . import precision_plan_widgets as widgets
from .calibration_inputs import checked, inputs_of, remember
from .handles import Plan
from .plan_text import on_card, on_cards, picture, table
from .precision_plan_request import request_of
from .progress import device_for, stoppable, watched
from .recipes import recipe_of, reports_folder

MIXED = "mixed"


class Wan22PrecisionPlan(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Wan22PrecisionPlan",
            display_name="Precision Plan (Wan 2.2)",
            category="Wan 2.2 Master/4 quantize",
            description="Which layer gets which format, and why: from a preset, a size budget, a GGUF, patterns and lists. Shows "
                        "the bytes of each expert, a picture of its blocks, and which share of the work runs in FP4, FP8, INT8 "
                        "or 16 bit on each class of card. Reads weights only for a budget or for promote, 256 rows a layer; with a "
                        "calibration a budget goes by the errors of outputs.",
            search_aliases=["mixed precision", "layer precision", "nvfp4 mixed", "gguf map", "size budget", "w4a16", "plan"],
            inputs=[sockets.Dit.Input("dit", tooltip="The model, with or without LoRAs. A budget and promote look at the merge."),
                    *widgets.inputs()],
            outputs=[sockets.Plan.Output(display_name="plan", tooltip="For Quantize, or for Merge Preview."),
                     io.String.Output(display_name="table", tooltip="Every layer with its format and the reason.")],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **asked):
        names = [asked.get(name) for name in ("plan_file", "sensitivity_high", "sensitivity_low", "full_precision_high",
                                              "full_precision_low", "gguf_high", "gguf_low")]
        return plan_files.states([name for name in names if isinstance(name, str)]), freshness.token(cls.hidden.unique_id)

    @classmethod
    def execute(cls, dit, calibration=None, **asked) -> io.NodeOutput:
        request = request_of(dit.roles, asked)
        inputs = {} if calibration is None else inputs_of(calibration, dit.roles)
        reports = Path(reports_folder())
        with (stoppable() as wish, plan_recipe(recipe_of(dit, device=device_for("auto")), reports, should_stop=wish) as plan,
              watched(cls.hidden.unique_id, plan.device.torch_device.type) as watch):
            doubts = () if calibration is None else checked(calibration, plan, dit.roles, allow=bool(asked.get("allow_other_base")))
            solved = solve(plan, request, reports=reports, calibration=inputs, should_stop=watch.should_stop,
                           on_progress=watch.on_progress)
            solved = replace(solved, plan=replace(solved.plan, title=title_of(solved.plan, asked),
                                                  notices=(*solved.plan.notices, *doubts)))
            drawn, rows = picture(plan.experts, solved), [*table(solved), *on_cards(plan.experts, solved)]
            here = on_card(plan.experts, solved, machine.card())
        if calibration is not None:
            remember(cls.hidden.unique_id, calibration)
        if asked["save_as"].strip():
            solved.plan.save(plan_files.target(asked["save_as"]))
        told = [f"note: {notice}" for notice in solved.plan.notices]
        text = "\n".join([*rows, *told])
        shown = {"wan22_plan": (drawn,), "text": ("\n".join([*here, *told]),)}
        return io.NodeOutput(Plan(solved.plan.title, json.dumps(solved.plan.to_json())), text, ui=shown)


def title_of(plan: PrecisionPlan, asked: dict) -> str:
    """As the user says, else as the engine does; but what began as one format, or as one mix of GGUF types, and was changed is no
    longer called by that one."""
    began_as_one = asked["source"] == "one format" and any(counts(plan, role).keys() - {KEEP} for role in plan.experts)
    return asked["title"].strip() or (MIXED if began_as_one and base_of(plan)[1] else plan.title)
