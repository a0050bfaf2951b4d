"""The node that tells both samplers at which step the experts change."""
import comfy.samplers
from comfy.model_sampling import ModelSamplingDiscreteFlow
from comfy_api.latest import io

from ..engine.bases.source import open_source
from ..engine.bases.variant import detect
from ..engine.boundary import boundary_of, split_of, split_step
from ..engine.errors import RecipeError
from . import sockets

AUTO, I2V, T2V, CUSTOM = "auto", "I2V (0.9)", "T2V (0.875)", "custom"
TASKS = {I2V: "i2v", T2V: "t2v"}
FORMULA = "(formula)"
IN_CHANNELS = {16: "t2v", 36: "i2v"}               # of the A14B pairs (wan_t2v_A14B.py, wan_i2v_A14B.py)


class Wan22SplitStep(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Wan22SplitStep",
            display_name="Split Step (Wan 2.2)",
            category="Wan 2.2 Master/2 merge",
            description="The step at which the high-noise expert hands over to the low-noise one: the first whose sigma is below "
                        "the boundary the experts were trained at. Connect it to end_at_step of the first KSamplerAdvanced and to "
                        "start_at_step of the second, with the same steps, scheduler and shift in both.",
            search_aliases=["split step", "boundary", "end at step", "start at step", "high low switch", "sampler split", "moe"],
            inputs=[
                io.Int.Input("steps", default=20, min=1, max=10000, tooltip="As in both samplers: the steps of both together."),
                io.Float.Input("shift", default=8.0, min=0.01, max=100.0, step=0.01,
                               tooltip="As in ModelSamplingSD3. Not used where model or sigmas is connected."),
                io.Combo.Input("task", options=[AUTO, I2V, T2V, CUSTOM], default=AUTO,
                               tooltip="auto: as dit or model says. The makers' boundary is 0.9 for I2V, 0.875 for T2V."),
                io.Float.Input("boundary", default=0.875, min=0.001, max=0.999, step=0.001, tooltip="For custom only: a sigma.",
                               advanced=True),
                io.Combo.Input("scheduler", options=[FORMULA, *comfy.samplers.SCHEDULER_NAMES], default=FORMULA,
                               tooltip="(formula): steps that lie evenly in time, as simple and normal. Any other: counted in "
                                       "ComfyUI's own sigmas of that scheduler."),
                sockets.Dit.Input("dit", optional=True, tooltip="Tells the task."),
                io.Model.Input("model", optional=True, tooltip="Tells task and shift: the MODEL behind ModelSamplingSD3."),
                io.Sigmas.Input("sigmas", optional=True, tooltip="Of all steps, for custom sampling: counted as they are."),
            ],
            outputs=[
                io.Int.Output(display_name="end_at_step", tooltip="Steps of the high-noise expert; the other starts there."),
                io.String.Output(display_name="info", tooltip="The boundary, and how the steps fall on both sides of it."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, steps, shift, task, boundary, scheduler, dit=None, model=None, sigmas=None) -> io.NodeOutput:
        boundary = boundary if task == CUSTOM else boundary_of(TASKS.get(task) or task_of(dit, model))
        how, sampling = f"shift {shift:g}, steps even in time", None
        if model is not None:
            sampling = model.get_model_object("model_sampling")
            shift = check_shift(sampling)
            how = f"shift {shift:g} of the model, steps even in time"
        if sigmas is None and scheduler != FORMULA:
            sigmas = comfy.samplers.calculate_sigmas(sampling or flow(shift), scheduler, steps)
            how = f"shift {shift:g}, sigmas of {scheduler}"
        elif sigmas is not None:
            steps, how = len(sigmas) - 1, "the connected sigmas"
        split = split_step(steps, shift, boundary) if sigmas is None else split_of(sigmas.tolist(), boundary)
        text = describe(split, steps, boundary, how)
        return io.NodeOutput(split, text, ui={"text": (text,)})


def task_of(dit, model) -> str:
    """Task of what is connected. Raises RecipeError when nothing is, or a MODEL whose channels tell no task."""
    if dit is not None:
        with open_source(dit.experts[0][1], allow_lossy=True) as source:
            return detect(source).task
    if model is not None:
        channels = model.model.model_config.unet_config.get("in_dim")
        if channels in IN_CHANNELS:
            return IN_CHANNELS[channels]
        raise RecipeError(f"split step: task is auto, but a MODEL of {channels} input channels tells none; choose the task")
    raise RecipeError("split step: task is auto, but neither dit nor model is connected; connect one, or choose the task")


def check_shift(sampling) -> float:
    """Shift of a MODEL's sampling. Raises RecipeError when it is no flow sampling, whose sigmas the boundary is a value of."""
    if not hasattr(sampling, "shift"):
        raise RecipeError(f"split step: expected a flow model, found {type(sampling).__name__}; connect a Wan MODEL")
    return float(sampling.shift)


def flow(shift: float) -> ModelSamplingDiscreteFlow:
    """Sampling as ModelSamplingSD3 sets it: 1000 time steps."""
    sampling = ModelSamplingDiscreteFlow()
    sampling.set_parameters(shift=shift)
    return sampling


def describe(split: int, steps: int, boundary: float, how: str) -> str:
    """In words; an expert that gets no step is said first."""
    alone = f"the {'low' if split == 0 else 'high'}-noise expert does all of it; "
    return (f"{alone if split in {0, steps} else ''}high-noise: {split} of {steps} steps, low-noise: {steps - split}; boundary "
            f"{boundary:g}, {how}")
