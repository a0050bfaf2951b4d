"""The node that sums a calibration up: input scales, the original's summary and list, plots, and what is missing."""
import json
from pathlib import Path

from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from ..engine.calibration.sensitive import THRESHOLD, as_lines, by_original_rule
from ..engine.calibration.session import Session
from ..engine.calibration.tell import joined
from ..engine.jobs.plan import plan_recipe
from ..engine.plans.input_scales import MARGIN
from . import calibration_files, calibration_sources, plan_files, sockets
from .calibration_inputs import checked
from .calibration_plot import PLOTS, draw
from .calibration_results import drawn, on_lists, scales_of, tabled, written
from .calibration_sources import collect
from .handles import Calibration, Scales
from .listed import once
from .plan_files import NONE
from .progress import stoppable
from .recipes import recipe_of, reports_folder
from .widgets import check_within

CONNECTED = "(connected)"
LARGEST = 100.0


class Wan22CalibrationSummary(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        logs = [NONE, *calibration_sources.files()]
        return io.Schema(
            node_id="Wan22CalibrationSummary",
            display_name="Calibration Summary (Wan 2.2)",
            category="Wan 2.2 Master/3 calibrate",
            description="Sums up what Calibrate recorded, or a log of the original converter: input scales for FP8 and NVFP4, the "
                        "original's summary as JSON and CSV, its list of sensitive layers, plots, and a word on what is missing.",
            search_aliases=["calibration", "scales summary", "input scale", "sensitive layers", "analyze log", "amax"],
            inputs=[
                sockets.Calib.Input("calibration", optional=True, tooltip="The session, from Calibrate."),
                io.AnyType.Input("after", optional=True,
                                 tooltip="Connect the sampler's latent, so that this runs when sampling is done. Its value is not "
                                         "used; without it this may run before the sampler."),
                sockets.Dit.Input("dit", optional=True,
                                  tooltip="The model that is saved: the session is held against it, its layers get the scales."),
                io.Combo.Input("session", options=[CONNECTED, *calibration_files.names()], default=CONNECTED,
                               tooltip="An earlier session in place of the connected one."),
                io.Combo.Input("log_high", options=logs, default=NONE,
                               tooltip="In place of the session: a log or summary of the original converter, of the high-noise "
                                       "expert, or of a model of one file (then connect dit). From "
                                       "user/default/wan22_master/calibration."),
                io.Combo.Input("log_low", options=logs, default=NONE, tooltip="The same for the low-noise expert."),
                io.Float.Input("percentile", default=LARGEST, min=1.0, max=LARGEST, step=0.1,
                               tooltip="Of the calls' largest inputs: 100 is the largest of all. 99.9 and a multiplier of 1.08 is "
                                       "the original's."),
                io.Float.Input("multiplier", default=MARGIN, min=0.01, max=1000.0, step=0.01,
                               tooltip="Margin over it. 2 is safe: too large a scale costs nothing, too small a one clips."),
                io.Float.Input("cv_threshold", default=THRESHOLD, min=0.0, max=10.0, step=0.01,
                               tooltip="For sensitive_layers, the original's t: besides all of cross-attention, layers whose scale "
                                       "varies at least so much between calls (scale_cv)."),
                io.Combo.Input("plot", options=list(PLOTS), default=PLOTS[0], tooltip="What the picture shows, of each expert."),
                io.Boolean.Input("write_files", default=True,
                                 tooltip="Write JSON and CSV into the session's folder and beside it, for Input Scales, and each "
                                         "expert's list into the plans folder, for Precision Plan."),
                io.Boolean.Input("allow_other_base", default=False, advanced=True,
                                 tooltip="Take a session that was recorded on another base than dit's."),
            ],
            outputs=[
                sockets.Scales.Output(display_name="scales", tooltip="For Quantize."),
                io.String.Output(display_name="sensitive_layers",
                                 tooltip="The original's list of both experts, for full_precision_layers of Precision Plan. Its "
                                         "rule, no measure of sensitivity."),
                io.Image.Output(display_name="plot", tooltip="Histograms, largest inputs by block, and the most varying layers."),
                sockets.Calib.Output(display_name="calibration", tooltip="The session, for Sensitivity."),
                io.String.Output(display_name="text", tooltip="What was recorded, what is missing, and the most varying layers."),
            ],
            is_output_node=True,
            is_input_list=True,
        )

    @classmethod
    @once
    def fingerprint_inputs(cls, session=CONNECTED, log_high=NONE, log_low=NONE, **others):
        names = calibration_files.names() if session == CONNECTED else [session]
        return calibration_sources.state(names), plan_files.states([log_high, log_low])

    @classmethod
    @once
    def execute(cls, session, log_high, log_low, percentile, multiplier, cv_threshold, plot, write_files, allow_other_base,
                calibration=None, after=None, dit=None) -> io.NodeOutput:
        check_within("calibration summary: percentile", percentile, 0.0, LARGEST)
        asked = None if percentile >= LARGEST else percentile
        opened = open_session(session, calibration)
        passed = None if opened is None else Calibration(opened.folder, opened.name)
        sources, lines = collect(opened, (log_high, log_low), () if dit is None else dit.roles, asked)
        recorded = tuple(role for role, source in sources.items() if source.gathered)
        if dit is not None and recorded:
            lines += check(passed, dit, recorded, allow=allow_other_base)
        models = {} if dit is None else dict(dit.experts)
        scales = {role: scales_of(source, models.get(role), asked, multiplier) for role, source in sources.items()}
        lines += [f"{role}: {notice}" for role, each in scales.items() for notice in each.notices]
        sensitive = {role: by_original_rule(source.rows, cv_threshold) for role, source in sources.items()}
        lines += on_lists(sensitive, cv_threshold)
        if write_files:
            lines += written(opened, sources, {role: as_lines({role: each}, cv_threshold) for role, each in sensitive.items()})
        lines = joined(lines)
        shown = [drawn(role, source) for role, source in sources.items()]
        picture = draw(plot, shown, cv_threshold)
        text = "\n".join([*lines, *(line for each in shown for line in ("", each.role, *tabled(each)))])
        handle = Scales(json.dumps({role: each.amax for role, each in scales.items()}))
        return io.NodeOutput(handle, as_lines(sensitive, cv_threshold), picture,
                             passed or ExecutionBlocker("calibration summary: there is no session to pass on"), text,
                             ui={**ui.PreviewImage(picture, cls=cls).as_dict(), "text": ("\n".join(lines),)})


def open_session(name: str, calibration: Calibration | None) -> Session | None:
    """The session that is chosen or connected; None for neither."""
    if name != CONNECTED:
        return Session.open(calibration_files.folder(name))
    return None if calibration is None else Session.open(calibration.folder)


def check(calibration: Calibration, dit, roles: tuple[str, ...], *, allow: bool) -> list[str]:
    """What to know of the session against this model. Raises SourceError for another base, unless that is allowed."""
    recipe, reports = recipe_of(dit, device="cpu"), Path(reports_folder())
    with stoppable() as wish, plan_recipe(recipe, reports, should_stop=wish) as plan:
        return checked(calibration, plan, roles, allow=allow)
