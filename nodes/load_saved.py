"""The node that loads what Save has just written, in the same run."""
import os

import comfy.sd
from comfy_api.latest import io

from ..engine.bases.gguf_header import is_gguf
from ..engine.errors import MergeError
from ..engine.gguf_mix import MIXES
from ..quant.formats import FORMATS
from . import freshness, sockets
from .activations import AS_HERE, EMULATIONS, describe, emulate, layers_of
from .gguf_loader import load_gguf

ANY = "any"


class Wan22LoadSaved(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Wan22LoadSaved",
            display_name="Load Saved (Wan 2.2)",
            category="Wan 2.2 Master/5 save",
            description="Loads a file of Save Model as a MODEL, always as it lies on disk now. Use it instead of Load Diffusion "
                        "Model when saving and sampling are in one workflow: that node can only name files that were there before "
                        "the run, and keeps the old weights of a file that was overwritten.",
            search_aliases=["load saved", "load merged", "unet loader", "file to model", "sample saved"],
            inputs=[
                sockets.Files.Input("files", tooltip="What Save Model wrote."),
                io.Combo.Input("expert", options=["auto", "high_noise", "low_noise"], default="auto",
                               tooltip="Which expert to load. auto: the only one there is."),
                io.Combo.Input("format", options=[ANY, *FORMATS, *MIXES], default=ANY,
                               tooltip="Which format, where several Quantize nodes were chained. any: the first. A GGUF file is "
                                       "loaded by ComfyUI-GGUF, which has to be installed."),
                io.Combo.Input("activations", options=list(EMULATIONS), default=AS_HERE, optional=True, advanced=True,
                               tooltip="Shows what the owner of another card will see. NVFP4 and MXFP8 layers round their inputs "
                                       "too on RTX 50, FP8 layers on RTX 40 and 50, and only there input scales are used: a card "
                                       "that cannot multiply in the format never reads them. The rounding is emulated, slowly."),
                io.String.Input("label", default="", optional=True, advanced=True,
                                tooltip="Which of two files of one format: its name in Save Model's table, with plan and suffix, "
                                        "as nvfp4_mine. Empty: the only one of that format."),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For ModelSamplingSD3, then a sampler.")],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return freshness.token(cls.hidden.unique_id)

    @classmethod
    def execute(cls, files, expert, format, activations=AS_HERE, label="") -> io.NodeOutput:
        file = choose(files.files, expert, format, label.strip())
        if not os.path.isfile(file.path):
            raise MergeError(f"{file.name}: was deleted since it was saved; queue again to write it again")
        freshness.remember(cls.hidden.unique_id, [file.path])
        model = load_gguf(file.path) if is_gguf(file.path) else comfy.sd.load_diffusion_model(file.path)
        layers, card = layers_of(model), EMULATIONS[activations]
        lines = [line for line in (f"loaded {file.name}", describe(model, layers, card)) if line]
        return io.NodeOutput(emulate(model, layers, card) if card else model, ui={"text": ("\n".join(lines),)})


def choose(files, expert: str, format_name: str, label: str = ""):
    """The file of that expert, format and label. ANY: of the first format; auto and an empty label: of the only one there is.

    Raises MergeError when there is none, or when it is not clear which.
    """
    there = _told(files) or "nothing"
    fitting = [file for file in files if expert in {"auto", file.role} and format_name in {ANY, file.format}
               and label in {"", file.label}]
    if not fitting:
        wanted = f"expert {expert}, format {format_name}{f', label {label}' if label else ''}"
        raise MergeError(f"load saved: expected {wanted}; saved was {there}; choose one of these")
    if len({file.role for file in fitting}) > 1:
        raise MergeError(f"load saved: two experts were saved ({there}); choose one of them in expert")
    alike = [file for file in fitting if file.format == fitting[0].format]
    if len(alike) > 1:
        raise MergeError(f"load saved: expected one {alike[0].format} file, found {len(alike)} ({_told(alike)}); write one of "
                         f"these names into label, as {alike[0].label}")
    return alike[0]


def _told(files) -> str:
    return ", ".join(f"{file.role} {file.label or file.format}" for file in files)
