"""The node that says in which format the merged model is saved; chained, several formats come from one reading."""
import comfy.model_patcher
from comfy_api.latest import io

from ..engine.bases.roles import Role
from ..engine.errors import RecipeError
from ..engine.gguf_mix import MIXES
from ..engine.recipes.output import FAST, SIXTEEN
from ..quant.formats import FORMATS
from . import freshness, sockets
from .bakeable import told
from .calibration_inputs import remember
from .handles import Calibration, Job, Output
from .model_handle import AS_INTENDED, AS_SAMPLED, ModelDit
from .model_role import model_name, role_of_model
from .model_source import open_model
from .plan_files import NONE
from .preview_adapter import preview_of
from .quantize_output import IMATRICES, asked, check_once, describe, more_inputs
from .weighed_columns import weights_in

FIRST = next(iter(FORMATS))                        # what most people want, offered first
ACTIVATIONS = {"fast, uncalibrated": FAST, "16-bit": SIXTEEN}
ALL = "all"
EXPERTS = (ALL, "high_noise", "low_noise")


class Wan22Quantize(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Wan22Quantize",
            display_name="Quantize (Wan 2.2)",
            category="Wan 2.2 Master/4 quantize",
            description="Chooses the format of the saved file. Chain several by more: all are written from one reading of the "
                        "base and one merge, rounded once.",
            search_aliases=["quantize", "quantise", "fp8", "float8", "scaled fp8", "bf16", "fp16", "convert", "precision", "gguf",
                            "q4_k_m", "q8_0"],
            inputs=[
                io.MultiType.Input("model", types=[sockets.Dit, io.Model], display_name="dit / model",
                                   tooltip="The model to save, merged or not; or any Wan MODEL, with whatever LoRAs and merges of "
                                           "other nodes are on it."),
                io.Combo.Input(
                    "format", options=[*FORMATS, *MIXES], default=FIRST,
                    tooltip="RTX 50: nvfp4 (a quarter of bf16, fastest), mxfp8 (half, no calibration). RTX 40: float8_e4m3fn. RTX "
                            "20 and 30: int8_tensorwise (half, a third of FP8's error; runs everywhere), asym_w4a8_int8 (a "
                            "quarter, less error than nvfp4). convrot_w4a4: a quarter, fast on RTX 20 to 40, most error. "
                            "float8_e5m2: small, never fast. bf16: a master, rounded once. fp16: for cards without bf16. fp32: for "
                            "merging further. From Q8_0 on, in capitals: a .gguf file, for ComfyUI-GGUF on any card, smaller, not "
                            "faster: Q8_0 is nearest to bf16, Q5_K_M and Q4_K_M are usual, Q3_K and Q2_K for little memory."),
                io.Combo.Input(
                    "activations", options=list(ACTIVATIONS), default=next(iter(ACTIVATIONS)),
                    tooltip="Of quantized layers without an input scale. fast: float8_e4m3fn multiplies in FP8 with an input scale "
                            "of 1, where the error of small activations is unknown: harmless above an rms of 0.03, 6 % at 0.01; "
                            "nvfp4, mxfp8 and int8 measure each input. 16-bit: multiplies in 16 bit; as small, not faster; int8 "
                            "formats multiply in int8 all the same."),
                io.Combo.Input("experts", options=list(EXPERTS), default=ALL,
                               tooltip="Which experts get this format. all: every one that is loaded. A MODEL is the expert that "
                                       "its file's metadata, name or folder tell; where they tell nothing, name it here: both "
                                       "halves of a pair then get names of their own."),
                sockets.Job.Input("more", optional=True,
                                  tooltip="Another Quantize of the same model: its formats are saved in the same run."),
                io.Combo.Input("unsampled", options=[AS_SAMPLED, AS_INTENDED], default=AS_SAMPLED, advanced=True, optional=True,
                               tooltip="For a MODEL: ComfyUI takes patches of the blocks' modulation, but does not apply them when "
                                       "it samples. as sampled: nor are they saved. as intended: they are."),
                *more_inputs(),
            ],
            outputs=[
                sockets.Job.Output(display_name="job", tooltip="For Save Model, or for more of the next Quantize."),
                io.String.Output(display_name="estimate", tooltip="What will be made and how it runs on this machine. Save Model "
                                                                  "with plan_only tells bytes, time and memory."),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return freshness.token(cls.hidden.unique_id)

    @classmethod
    def execute(cls, model, format, activations, experts, more=None, unsampled=AS_SAMPLED, plan=None, scales=None,
                calibration=None, **settings):
        model, role, lines = taken(model, unsampled, experts)
        if role is not None and experts not in {ALL, role}:
            raise RecipeError(f"quantize: experts is {experts}, but the MODEL is a preview of {role}; choose {ALL}")
        experts = role or experts
        if more is not None and more.dit != model:
            raise RecipeError("quantize: more comes from another model or merge, or names another expert of it; chain only "
                              "Quantize nodes with the same dit or MODEL, and for a MODEL the same experts")
        roles, earlier = chosen_roles(model, experts), more.outputs if more else ()
        weights, weighed = weights_from(calibration, roles, settings, model)
        if calibration is not None:
            remember(cls.hidden.unique_id, calibration)
        output = asked(model, Output(format, ACTIVATIONS[activations], roles),
                       {"plan": plan, "scales": scales, "weights": weights}, settings)
        check_once(output, earlier)
        outputs = (*earlier, output)
        estimate = "\n".join([*(told for output in outputs for told in describe(model, output)), *weighed, *lines])
        return io.NodeOutput(Job(model, outputs), estimate, ui={"text": (estimate,)})


def weights_from(calibration: Calibration | None, roles: tuple[str, ...], settings: dict,
                 dit) -> tuple[dict[str, str], list[str]]:
    """(role -> imatrix of a calibration, lines about experts without one). settings: other widgets.

    Raises RecipeError beside an imatrix file."""
    if calibration is None:
        return {}, []
    named = [name for name in IMATRICES if (settings.get(name) or NONE) != NONE]
    if named:
        raise RecipeError(f"quantize: calibration and {named[0]} both say how much columns count; leave one of them out")
    return weights_in(calibration, roles, {} if isinstance(dit, ModelDit) else dict(dit.experts))


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
