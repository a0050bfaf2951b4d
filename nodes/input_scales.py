"""The node that says how large the inputs of each layer get, so that FP8 and NVFP4 files carry input scales."""
import json

from comfy_api.latest import io

from ..engine.errors import RecipeError
from ..engine.plans import input_scales, scales_summary
from ..engine.plans.input_scales import InputScales
from . import paths, plan_files, sockets
from .block_layers import layers_of
from .handles import Scales
from .plan_files import CALIBRATION, NONE
from .widgets import check_within

SOURCES = ("scales summary", "another file", "constant")
LARGEST = 100.0


class Wan22InputScales(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        summaries = [NONE, *plan_files.names(CALIBRATION, (".json",))]
        models = [NONE, *(name for name in paths.diffusion_models() if not name.endswith(paths.GGUF))]   # GGUF has no scales
        return io.Schema(
            node_id="Wan22InputScales",
            display_name="Input Scales (Wan 2.2)",
            category="Wan 2.2 Master/4 quantize",
            description="Input scales for the layers that ComfyUI quantizes the input of: FP8 and NVFP4. From the summary of a "
                        "calibration, from another quantized file, or one number. A scale that is too large costs nothing up to 64 "
                        "times (FP8) or 256 times (NVFP4); one that is too small clips. Without scales NVFP4 measures each input, "
                        "and FP8 takes 1.",
            search_aliases=["calibration", "input scale", "scales summary", "activation scale", "static scale"],
            inputs=[
                sockets.Dit.Input("dit", tooltip="The model that is saved: its layers are looked up."),
                io.Combo.Input("source", options=list(SOURCES), default=SOURCES[0], tooltip="Where the scales come from."),
                io.Combo.Input("summary_high", options=summaries, default=NONE,
                               tooltip="For scales summary: of the high-noise expert, or of a model of one file. From "
                                       "user/default/wan22_master/calibration."),
                io.Combo.Input("summary_low", options=summaries, default=NONE, tooltip="The same for the low-noise expert."),
                io.Float.Input("percentile", default=LARGEST, min=1.0, max=LARGEST, step=0.1,
                               tooltip="For scales summary: 100 is the largest input seen; else one of the summary's own."),
                io.Float.Input("multiplier", default=input_scales.MARGIN, min=0.01, max=1000.0, step=0.01,
                               tooltip="Margin over it. 2 is safe; the original's recipe is percentile 99.9 and 1.08."),
                io.Combo.Input("file_high", options=models, default=NONE,
                               tooltip="For another file: a quantized file of the high-noise expert, or of one file."),
                io.Combo.Input("file_low", options=models, default=NONE, tooltip="The same for the low-noise expert."),
                io.Float.Input("amax", default=100.0, min=1e-3, max=1e5, step=1.0,
                               tooltip="For constant: the largest input of any layer, margin included. Real ones reach 74."),
                io.Boolean.Input("share", default=True, advanced=True,
                                 tooltip="Layers with the same input share a scale: q, k and v of a self-attention, k and v of all "
                                         "cross-attentions."),
            ],
            outputs=[sockets.Scales.Output(display_name="scales", tooltip="For Quantize."),
                     io.String.Output(display_name="info", tooltip="Which layers got a scale, and which did not.")],
            has_intermediate_output=True,
        )

    @classmethod
    def fingerprint_inputs(cls, source=SOURCES[0], summary_high=NONE, summary_low=NONE, file_high=NONE, file_low=NONE, **others):
        models = [name for name in (file_high, file_low) if name != NONE and source == SOURCES[1]]
        return plan_files.states([summary_high, summary_low]), [paths.signature(paths.model_path(name)) for name in models]

    @classmethod
    def execute(cls, dit, source, summary_high, summary_low, percentile, multiplier, file_high, file_low, amax,
                share) -> io.NodeOutput:
        check_within("input scales: multiplier", multiplier, 0.01, 1000.0)
        chosen = {"scales summary": (summary_high, summary_low), "another file": (file_high, file_low),
                  "constant": (None, None)}[source]
        found, lines = {}, []
        for role, path in dit.experts:
            name = chosen[role == "low_noise"]
            if name == NONE:
                lines.append(f"{role}: no input scales, nothing is chosen for it")
                continue
            wish = {"percentile": percentile, "multiplier": multiplier, "amax": amax, "share": share}
            scales = read(source, name, layers_of(path), wish)
            found[role] = scales.amax
            lines += [f"{role}: {notice}" for notice in scales.notices]
        if not found:
            raise RecipeError(f"input scales: source is {source}, but nothing is chosen for {' or '.join(dit.roles)}; choose a "
                              "file")
        text = "\n".join(lines)
        return io.NodeOutput(Scales(json.dumps(found)), text, ui={"text": (text,)})


def read(source: str, name: str | None, layers: list[str], wish: dict) -> InputScales:
    """Scales of one expert. name: what is chosen for it in the list of that source; wish: the node's other widgets."""
    if source == "scales summary":
        percentile = None if wish["percentile"] >= LARGEST else wish["percentile"]
        summary = scales_summary.read_summary(plan_files.path_of(CALIBRATION, name))
        return scales_summary.from_summary(summary, layers, percentile=percentile, multiplier=wish["multiplier"],
                                           share=wish["share"])
    if source == "another file":
        return input_scales.from_file(paths.model_path(name), layers, share=wish["share"])
    return InputScales(input_scales.constant(wish["amax"], layers).amax, (f"{wish['amax']:g} for {len(layers)} layers",))
