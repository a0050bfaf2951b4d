"""The node that makes a merge a MODEL at once: sampled like any other, and nothing is written."""
import os
import weakref
from pathlib import Path

import comfy.model_management
import comfy.sd
import torch
from comfy.quant_ops import QuantizedTensor
from comfy_api.latest import io

from ..engine.errors import RecipeError, SourceError
from ..engine.jobs.plan import Plan, plan_recipe
from ..engine.preview import Preview, settle
from ..engine.recipes.output import Output
from . import paths, sockets
from .activations import AS_HERE, EMULATIONS, emulate
from .activations import describe as activations_of
from .preview_adapter import PREFIX, PreviewJob, put_on
from .preview_output import SHOWN, shown_output, stored_activations
from .progress import device_for, stoppable, watched
from .recipes import recipe_of, reports_folder
from .save_text import size

ROLES = ("high_noise", "low_noise", "model")
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_bases: weakref.WeakValueDictionary = weakref.WeakValueDictionary()   # file as it was -> MODEL, while a preview of it is alive


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
            preview = _preview(merge, expert, output, int(cache_gb * 1e9))   # closes the plan, now or when nobody needs it
            with watched(cls.hidden.unique_id, "cpu", "stopped") as watch:
                settle(merge, expert, reports=reports, should_stop=watch.should_stop, on_progress=watch.on_progress)
            previewed = put_on(host, PreviewJob(preview, dit, expert))
        layers, card = stored_activations(preview), EMULATIONS[activations]
        lines = [*describe(preview, previewed), activations_of(previewed, layers, card)]
        previewed = emulate(previewed, layers, card)
        text = "\n".join(line for line in lines if line)
        return io.NodeOutput(previewed, text, ui={"text": (text,)})


def _preview(plan: Plan, role: str, output: Output, budget: int) -> Preview:
    try:
        stop = comfy.model_management.processing_interrupted
        return Preview(plan, role, output=output, budget=budget, should_stop=stop)
    except BaseException:
        plan.__exit__()
        raise


def path_of(dit, expert: str) -> str:
    """File of one expert. Raises RecipeError when it is not loaded, SourceError when ComfyUI cannot load it as one file."""
    found = dict(dit.experts)
    if expert not in found:
        loaded = "one file; choose model" if set(found) == {"model"} else f"{' and '.join(found)}; choose that"
        raise RecipeError(f"merge preview: expert is {expert}, but loaded is {loaded}")
    if os.path.isdir(found[expert]) or found[expert].endswith(paths.INDEX):
        raise SourceError(f"{os.path.basename(found[expert])}: a model in several files, which ComfyUI cannot load as a MODEL; "
                          "save it as BF16 first, without LoRAs, and preview on that file")
    return found[expert]


def base_of(path: str):
    """The base at `path` as a MODEL, the one that an earlier preview still holds if there is one."""
    state = os.stat(path)
    known = (os.path.realpath(path), state.st_size, state.st_mtime_ns)
    model = _bases.get(known)
    if model is None:
        _bases[known] = model = comfy.sd.load_diffusion_model(path)
    return model


def file_of(model) -> str | None:
    """Path of the file that a MODEL was loaded from; None when its loader does not tell."""
    _, arguments = (getattr(model, "cached_patcher_init", None) or (None, ()))[:2]
    return arguments[0] if arguments and isinstance(arguments[0], str) else None


def check_host(model, path: str, *, approximate: bool) -> None:
    """Raise SourceError when the preview on this MODEL would not show what is saved."""
    if approximate:
        return
    file = file_of(model)
    if file is None or not os.path.exists(file) or not os.path.samefile(file, path):
        found = "a MODEL whose loader names no file" if file is None else os.path.basename(file)
        raise SourceError(f"merge preview: expected a MODEL of {os.path.basename(path)}, found {found}; connect Load Diffusion "
                          "Model of that file, or nothing")
    for name, weight in model.model.named_parameters():
        quantized = isinstance(weight, QuantizedTensor) or getattr(weight, "tensor_type", None) is not None
        if quantized or weight.dtype in FP8:
            held = getattr(weight, "_layout_cls", None) or weight.dtype
            raise SourceError(f"merge preview: {name}: expected 16 or 32-bit weights, found {held}; ComfyUI would round the merge "
                              "to them again; take the bf16 or fp16 file with weight_dtype default, or turn approximate on")


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
