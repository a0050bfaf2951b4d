"""The node that says in which format the merged model is saved; chained, several formats come from one reading."""
import comfy.model_management
import comfy.model_patcher
from comfy_api.latest import io

from ..engine.bases.roles import Role
from ..engine.errors import RecipeError
from ..quant.formats import FORMATS, QUANTIZED
from . import sockets
from .bakeable import told
from .handles import Job, Output
from .model_handle import AS_INTENDED, AS_SAMPLED, ModelDit
from .model_role import model_name, role_of_model
from .model_source import open_model
from .preview_adapter import preview_of

FIRST = next(iter(FORMATS))                        # what most people want, offered first
ACTIVATIONS = {"fast, uncalibrated": "fast_uncalibrated", "16-bit": "16-bit"}
ALL = "all"
EXPERTS = (ALL, "high_noise", "low_noise")
UNCALIBRATED = "uncalibrated: the error of small activations is unknown, harmless above rms 0.03, 6 % at 0.01"


class Wan22Quantize(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Wan22Quantize",
            display_name="Quantize (Wan 2.2)",
            category="Wan 2.2 Master/4 quantize",
            description="Chooses the format of the saved file. Chain several by more: all are written from one reading of the "
                        "base and one merge, rounded once.",
            search_aliases=["quantize", "quantise", "fp8", "float8", "scaled fp8", "bf16", "fp16", "convert", "precision"],
            inputs=[
                io.MultiType.Input("model", types=[sockets.Dit, io.Model], display_name="dit / model",
                                   tooltip="The model to save, merged or not; or any Wan MODEL, with whatever LoRAs and merges of "
                                           "other nodes are on it."),
                io.Combo.Input(
                    "format", options=list(FORMATS), default=FIRST,
                    tooltip="float8_e4m3fn: half the size of bf16, fast on RTX 40 and newer. bf16: a master, rounded once. fp16: "
                            "for cards without bf16. fp32: for merging further."),
                io.Combo.Input(
                    "activations", options=list(ACTIVATIONS), default=next(iter(ACTIVATIONS)),
                    tooltip="For float8 only. fast: multiplies in FP8, with an input scale of 1 while uncalibrated; the error of "
                            "small activations is then unknown: harmless above an rms of 0.03, 6 % at 0.01. 16-bit: multiplies in "
                            "16 bit; the file is as small, but not faster."),
                io.Combo.Input("experts", options=list(EXPERTS), default=ALL,
                               tooltip="Which experts get this format. all: every one that is loaded. A MODEL is the expert that "
                                       "its file's metadata, name or folder tell; where they tell nothing, name it here: both "
                                       "halves of a pair then get names of their own."),
                sockets.Job.Input("more", optional=True,
                                  tooltip="Another Quantize of the same model: its formats are saved in the same run."),
                io.Combo.Input("unsampled", options=[AS_SAMPLED, AS_INTENDED], default=AS_SAMPLED, advanced=True, optional=True,
                               tooltip="For a MODEL: ComfyUI takes patches of the blocks' modulation, but does not apply them when "
                                       "it samples. as sampled: nor are they saved. as intended: they are."),
            ],
            outputs=[
                sockets.Job.Output(display_name="job", tooltip="For Save Model, or for more of the next Quantize."),
                io.String.Output(display_name="estimate", tooltip="What will be made and how it runs on this machine. Save Model "
                                                                  "with plan_only tells bytes, time and memory."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, model, format, activations, experts, more=None, unsampled=AS_SAMPLED) -> io.NodeOutput:
        model, role, lines = taken(model, unsampled, experts)
        if role is not None and experts not in {ALL, role}:
            raise RecipeError(f"quantize: experts is {experts}, but the MODEL is a preview of {role}; choose {ALL}")
        experts = role or experts
        if more is not None and more.dit != model:
            raise RecipeError("quantize: more comes from another model or merge, or names another expert of it; chain only "
                              "Quantize nodes with the same dit or MODEL, and for a MODEL the same experts")
        output, earlier = Output(format, ACTIVATIONS[activations], chosen_roles(model, experts)), more.outputs if more else ()
        check_once(output, earlier)
        outputs = (*earlier, output)
        estimate = "\n".join([*(describe(output) for output in outputs), *lines])
        return io.NodeOutput(Job(model, outputs), estimate, ui={"text": (estimate,)})


def taken(model, unsampled: str, experts: str = ALL) -> tuple[object, str | None, list[str]]:
    """(what the job carries, the expert where it is one of several, lines about it) of a dit or a MODEL.

    A MODEL of Merge Preview stands for its dit: merged from the files, rounded once. experts: names a MODEL that nothing else
    tells. Raises SourceError for what cannot be baked.
    """
    if not isinstance(model, comfy.model_patcher.ModelPatcher):
        return model, None, []
    job = preview_of(model)
    if job is not None:
        return job.dit, job.role, ["a MODEL of Merge Preview: saved from its files, as its dit would be"]
    found = role_of_model(model)
    handle = ModelDit(model, model_name(model), unsampled, found.role or (experts if experts != ALL else "model"))
    return handle, None, [*open_model(handle).describe(), expert_line(found, handle.role), *(f"  {line}" for line in told(model))]


def expert_line(found: Role, role: str) -> str:
    """Which expert a MODEL is saved as, and how that is known."""
    if found.role is None and role == "model":
        return f"  saved as a model of one file: {found.evidence}; of a pair, name its expert in experts"
    return f"  saved as {role}, known by: {found.evidence if found.role else 'your choice'}"


def chosen_roles(dit, experts: str) -> tuple[str, ...]:
    """Roles that an `experts` widget names. Raises RecipeError when the expert is not loaded."""
    if experts != ALL and experts not in dit.roles:
        raise RecipeError(f"experts is {experts}, but loaded is {' and '.join(dit.roles).replace('model', 'one file')}; choose all")
    return dit.roles if experts == ALL else (experts,)


def check_once(output: Output, earlier: tuple[Output, ...]) -> None:
    """Raise RecipeError when a Quantize before asks for the same format of the same expert."""
    for role in output.experts:
        if any(role in other.experts and other.format == output.format for other in earlier):
            whose = "" if role == "model" else f" of {role}"
            raise RecipeError(f"quantize: {output.format}{whose} is asked for twice, here and by more; change format or experts")


def describe(output: Output) -> str:
    """One format in words: experts, what happens to activations, whether this machine multiplies in it."""
    name = output.format if output.experts == ("model",) else f"{output.format} for {' and '.join(output.experts)}"
    if output.format not in QUANTIZED:
        return name
    if output.activations == "16-bit":
        return f"{name}, 16-bit activations: smaller, not faster"
    card = "native on this machine" if comfy.model_management.supports_fp8_compute() else "emulated on this machine"
    return f"{name}, fast, {card}; {UNCALIBRATED}"
