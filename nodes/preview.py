"""The node that makes a merge a MODEL at once: sampled like any other, and nothing is written."""
from pathlib import Path

import comfy.model_management
from comfy_api.latest import io

from ..engine.jobs.plan import plan_recipe
from ..engine.preview import Preview, settle
from . import sockets
from .activations import AS_HERE, EMULATIONS, emulate
from .activations import describe as activations_of
from .preview_adapter import PREFIX, PreviewJob, put_on
from .preview_host import base_of, check_host, open_preview, path_of
from .preview_output import SHOWN, shown_output, stored_activations
from .progress import device_for, stoppable, watched
from .recipes import recipe_of, reports_folder
from .save_text import size

ROLES = ("high_noise", "low_noise", "model")


class Wan22MergePreview(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Wan22MergePreview",
            display_name="Merge Preview (Wan 2.2)",
            category="Wan 2.2 Master/2 merge",
            description="The merge as a MODEL, without a file: each weight is merged when ComfyUI loads it, by the very code "
                        "that saves it, so that preview and saved BF16 file are the same bits. Put other LoRA loaders behind "
                        "it, never before. A stop while the preview is loaded ends as an error in red, on purpose: ComfyUI's "
                        "own interrupt there would leave the base half merged.",
            search_aliases=["preview", "live merge", "merge to model", "try merge", "dit to model", "sample merge"],
            inputs=[
                sockets.Dit.Input("dit", tooltip="The model with its LoRAs, from Inject."),
                io.Combo.Input("expert", options=list(ROLES), default=ROLES[0],
                               tooltip="Which expert becomes the MODEL; one Merge Preview for each. model: a dit of one file."),
                io.Model.Input("model", optional=True,
                               tooltip="The base as Load Diffusion Model loaded it, weight_dtype default, of the same file: it is "
                                       "then not loaded again when a strength changes. Empty: loaded here."),
                io.Combo.Input("saved_as", options=list(SHOWN), default=SHOWN[0], advanced=True,
                               tooltip="The format whose weights are shown, as a saved file would hold them: a quantized one is "
                                       "quantized and read back. A plan or a job, where one is connected, decides instead."),
                io.Float.Input("cache_gb", default=8.0, min=0.0, max=512.0, step=0.5, advanced=True,
                               tooltip="Memory for merged weights, so that layers which do not fit on the card are not merged "
                                       "again at every step. Taken only as needed."),
                io.Boolean.Input("approximate", default=False, advanced=True,
                                 tooltip="Accept a quantized MODEL as host: its weights are rounded again to its format, so that "
                                         "the picture only resembles that of the saved file."),
                io.Combo.Input("device", options=["auto", "cpu"], default="auto", advanced=True,
                               tooltip="Where weights are merged; as in Save Model, for the same bits."),
                sockets.Plan.Input("plan", optional=True, tooltip="From Precision Plan: shows what a file by it would hold."),
                sockets.Job.Input("job", optional=True,
                                  tooltip="From Quantize of the same dit: shows its last output for this expert, with scales."),
                io.Combo.Input("activations", options=list(EMULATIONS), default=AS_HERE, optional=True, advanced=True,
                               tooltip="Rounds the inputs of quantized layers as another card does, with the file's input scales: "
                                       "what owners of an RTX 50 (W4A4) or 40 (W8A8) will see. Slow."),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="For ModelSamplingSD3, then a sampler. Quantize takes it too."),
                io.String.Output(display_name="info", tooltip="What is merged, where its memory goes, what each step reads."),
            ],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, dit, expert, saved_as, cache_gb, approximate, device, model=None, plan=None, job=None,
                activations=AS_HERE) -> io.NodeOutput:
        path, output = path_of(dit, expert), shown_output(dit, expert, saved_as, plan, job)
        host = base_of(path) if model is None else model
        check_host(host, path, approximate=approximate)
        reports = Path(reports_folder())
        with stoppable() as wish:
            merge = plan_recipe(recipe_of(dit, device=device_for(device)), reports, should_stop=wish)
            stop = comfy.model_management.processing_interrupted
            preview = open_preview(merge, expert, output=output, budget=int(cache_gb * 1e9), should_stop=stop)
            with watched(cls.hidden.unique_id, "cpu", "stopped") as watch:
                settle(merge, expert, reports=reports, should_stop=watch.should_stop, on_progress=watch.on_progress)
            previewed = put_on(host, PreviewJob(preview, dit, expert))
        layers, card = stored_activations(preview), EMULATIONS[activations]
        lines = [*describe(preview, previewed), activations_of(previewed, layers, card)]
        previewed = emulate(previewed, layers, card)
        text = "\n".join(line for line in lines if line)
        return io.NodeOutput(previewed, text, ui={"text": (text,)})


def describe(preview: Preview, model) -> list[str]:
    """What a preview MODEL does, in words."""
    role, loras, now = preview.expert.role, len(preview.expert.entries), sum(key.startswith(PREFIX) for key in model.object_patches)
    if not preview.keys:
        name = "the model" if role == "model" else role
        lines = [f"nothing is merged: no LoRA changes {name}; the MODEL is the base as it is"]
        return lines + [f"note: {notice}" for notice in preview.plan.notices]
    head = (f"{len(preview.keys)} of {len(preview.expert.specs)} tensors{'' if role == 'model' else f' of {role}'} are merged with "
            f"{loras} LoRA{'s' * (loras != 1)} when ComfyUI loads the model, rounded as {preview.output.label}")
    lines = [head + (f"; {now} are merged already" if now else "")]
    if model.load_device.type == "cpu":
        lines.append("on the processor it needs twice the model's memory: base and merged")
    else:
        room = comfy.model_management.get_total_memory(model.load_device) - comfy.model_management.minimum_inference_memory()
        again = preview.read_bytes(min(max(room, 0), model.model_size()))
        lines.append(f"each step reads up to {size(again)} again for layers that do not stay on the card; raise cache_gb to read "
                     "less" if again else "no step reads the base again: what does not stay on the card is kept in memory")
    return lines + [f"note: {notice}" for notice in preview.plan.notices]
