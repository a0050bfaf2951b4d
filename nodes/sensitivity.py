"""The node that tells which layers a format hurts, on what the model really computes, and makes weights for better rounding."""
from pathlib import Path

from comfy_api.latest import io

from ..engine.jobs.plan import plan_recipe
from ..engine.jobs.sensitivity import FORMATS, assess, save, wanted
from ..engine.plans.input_scales import MARGIN
from . import freshness, machine, sockets
from .calibration_inputs import checked, inputs_of, remember
from .handles import Calibration
from .listed import once
from .progress import device_for, stoppable, watched
from .quantize import ALL, EXPERTS, chosen_roles
from .recipes import recipe_of, reports_folder
from .sensitivity_text import layer_list, lines
from .widgets import check_within


class Wan22Sensitivity(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Wan22Sensitivity",
            display_name="Sensitivity (Wan 2.2)",
            category="Wan 2.2 Master/3 calibrate",
            description="How much each layer's output is off in each format, on the inputs that a session of Calibrate kept: "
                        "weights only, and with the input rounded too, as the card does. Half of the inputs judge what the other "
                        "half taught. Makes the weights for Quantize, the errors for Precision Plan, and a list of layers that "
                        "belong into 16 bit. 256 rows of each layer are read.",
            search_aliases=["output error", "layer sensitivity", "imatrix", "importance matrix", "w4a4", "w4a16", "calibration"],
            inputs=[
                sockets.Dit.Input("dit", tooltip="The model that will be quantized, with its LoRAs: the merge is measured."),
                sockets.Calib.Input("calibration", tooltip="The session, from Calibrate."),
                io.Combo.Input("formats", options=list(FORMATS), default=FORMATS[0],
                               tooltip="What is tried. this card's: formats that this machine multiplies natively. all: every one, "
                                       "as cards of its kind multiply it; slow. gguf: types of GGUF files."),
                io.Combo.Input("experts", options=list(EXPERTS), default=ALL, tooltip="Which experts are measured."),
                io.Float.Input("margin", default=MARGIN, min=1.0, max=64.0, step=0.1, advanced=True,
                               tooltip="Input scales stand for the largest input seen times this, as in Input Scales."),
                io.Boolean.Input("allow_other_base", default=False, advanced=True,
                                 tooltip="Go on where the session was recorded on another base model."),
                io.AnyType.Input("after", optional=True,
                                 tooltip="Anything that the sampler made: this node then waits for it, where prompts and this node "
                                         "run in one queue. Its value is not used."),
            ],
            outputs=[
                sockets.Calib.Output(display_name="calibration",
                                     tooltip="The same session, measured: for Precision Plan, and for Quantize, which takes the "
                                             "weights from it."),
                io.String.Output(display_name="full_precision_layers",
                                 tooltip="Layers whose output error is more than doubled by rounding their input, one a line: for "
                                         "full_precision_layers of Precision Plan."),
                io.String.Output(display_name="table", tooltip="Formats compared, worst layers, what weighing columns gains."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
            is_input_list=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return freshness.token(cls.hidden.unique_id)

    @classmethod
    @once
    def execute(cls, dit, calibration, formats, experts, margin, allow_other_base, after=None) -> io.NodeOutput:
        check_within("sensitivity: margin", margin, 1.0, 64.0)
        roles, reports = chosen_roles(dit, experts), Path(reports_folder())
        inputs = inputs_of(calibration, roles, margin)
        with (stoppable() as wish, plan_recipe(recipe_of(dit, device=device_for("auto")), reports, should_stop=wish) as plan,
              watched(cls.hidden.unique_id, plan.device.torch_device.type) as watch):
            told = checked(calibration, plan, roles, allow=allow_other_base)
            measured = [expert for expert in plan.experts if expert.role in inputs]
            asked = {expert.role: wanted(expert, formats, machine.card(), inputs[expert.role]) for expert in measured}
            found = assess(plan, asked, reports=reports, should_stop=watch.should_stop, on_progress=watch.on_progress)
            for expert, assessed in zip(measured, found, strict=True):
                save(assessed, calibration.folder, expert)
        remember(cls.hidden.unique_id, calibration)
        blind = [f"{role}: the calibration has no run of it" for role in roles if role not in inputs]
        text = "\n".join([*told, *(line for assessed in found for line in lines(assessed)), *blind])
        return io.NodeOutput(Calibration(calibration.folder, calibration.name), layer_list(found), text, ui={"text": (text,)})
