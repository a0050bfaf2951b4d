"""The node that writes the files: the one pass over the weights, with everything before it being words."""
import json
import os
from contextlib import contextmanager
from pathlib import Path

from comfy_api.latest import io
from comfy_execution.graph_utils import ExecutionBlocker
from server import PromptServer

from ..engine.jobs import job as jobs
from ..engine.jobs.order import AUTO, ORDERS
from ..engine.jobs.plan import plan_recipe
from ..engine.jobs.run import run
from ..engine.precision import GGUF
from . import freshness, paths, sockets
from .gguf_loader import check_loader
from .handles import Files
from .judge import finite
from .loaded_check import answered, reference_lines, without_reference
from .model_source import bake_lines, sources_of
from .progress import device_for, stoppable, watched
from .recipes import recipe_of, reports_folder
from .save_text import headers, leftover_lines, plan_lines, result_lines, saved_files, table, volume_lines
from .widgets import check_filled

CUSTOM = "custom"
STOPPED = "stopped at {share:.0%}; queue again to go on from there"
STOPPED_MODEL = "stopped at {share:.0%}; a MODEL cannot be resumed: nothing is left, queue again to start over"
SAVED = "wan22_master.saved"                       # event that web/index.js answers with a toast and fresh model lists


class Wan22SaveModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Wan22SaveModel",
            display_name="Save Model (Wan 2.2)",
            category="Wan 2.2 Master/5 save",
            description="Merges and writes all files of the job, tensor by tensor, into a folder of diffusion_models. Stop it at "
                        "any time: queue the same again and it goes on from there. A file that is there is not written twice.",
            search_aliases=["save model", "save merged", "export", "bake", "write fp8", "model save", "save diffusion model"],
            inputs=[sockets.Job.Input("job", tooltip="From Quantize."), *_widgets()],
            outputs=[
                sockets.Files.Output(display_name="files", tooltip="The finished files, for Load Saved."),
                io.String.Output(display_name="path_high / path", tooltip="Path of the high-noise file, or of the only one."),
                io.String.Output(display_name="path_low", tooltip="Path of the low-noise file; empty when there is none."),
                io.String.Output(display_name="header", tooltip="What stands in the header of each file, as it will be written."),
                io.String.Output(display_name="report", tooltip="Everything about the run, as JSON; with plan_only the plan."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, plan_only, **inputs):
        return float("nan") if plan_only else freshness.token(cls.hidden.unique_id)

    @classmethod
    def execute(cls, job, title, version, name, custom_name, folder, subfolder, on_exists, metadata, lora_names, plan_only,
                device, order=AUTO, after_save=False) -> io.NodeOutput:  # noqa: FBT002 - ComfyUI gives it by name
        check_filled("save model: title", title)
        if name == CUSTOM:
            check_filled("save model: custom_name", custom_name)
        target, reports = paths.save_folder(folder, subfolder), Path(reports_folder())
        save = {"folder": target, "name": custom_name if name == CUSTOM else name, "metadata": metadata, "lora_names": lora_names,
                "on_exists": on_exists, "order": order}
        alone = without_reference(job.dit) if after_save else {}
        recipe = recipe_of(job.dit, job.outputs, title=title, title_version=version, save=save, device=device_for(device))
        if after_save and any(output.container == GGUF for output in recipe.outputs):
            check_loader("after_save")             # now, not when all is written
        models = sources_of(job.dit)
        with stoppable() as wish, plan_recipe(recipe, reports, check_space=not plan_only, should_stop=wish, sources=models) as plan:
            rows, header = plan.rows(), headers(plan)
            told, volumes = {"wan22_table": (table(rows),)}, plan.volumes()
            # all files go into one folder, known by its label: a picture of the graph shall not show whose disk it is
            room = volume_lines([{**each, "volume": folder} for each in volumes], plan.order)
            if plan_only:
                lines = [*room, *reference_lines(alone), *plan_lines(plan.notices), *leftover_lines(target)]
                told["text"] = ("\n".join(lines),)
                nothing = ExecutionBlocker(None)
                planned = json.dumps({"plan": rows, "volumes": volumes, "order": plan.order, "notices": plan.notices})
                return io.NodeOutput(nothing, nothing, nothing, header, planned, ui=told)
            os.makedirs(target, exist_ok=True)
            kind, stopped = plan.device.torch_device.type, STOPPED_MODEL if models else STOPPED
            with watched(cls.hidden.unique_id, kind, stopped) as watch, kept(plan, resumable=not models):
                watch.say("\n".join([*room, *reference_lines(alone)]))
                report = run(plan, reports=reports, should_stop=watch.should_stop, on_progress=watch.on_progress)
        report = finite(report)
        files = saved_files(report)
        freshness.remember(cls.hidden.unique_id, [file.path for file in files])
        PromptServer.instance.send_sync(SAVED, {"files": [file.name for file in files], "folder": folder})
        checked = answered(job.dit, files, device_for(device), alone) if after_save else []   # may fail: the files are told before
        lines = [*result_lines(report), *(f"planned: {line}" for line in room), *checked, *bake_lines(models)]
        told["text"] = ("\n".join([*lines, *leftover_lines(target)]),)
        high, low = (next((file.path for file in files if file.role in roles), "")
                     for roles in (("high_noise", "model"), ("low_noise",)))
        return io.NodeOutput(Files(files), high, low, header, json.dumps(report), ui=told)


@contextmanager
def kept(plan, *, resumable: bool):
    """On any error or stop inside, unfinished files stay for resuming, or go when nothing could ever resume them."""
    try:
        yield
    except BaseException:
        for out in () if resumable else [out for expert in plan.experts for out in expert.outputs]:
            job = jobs.load(out.target.path)
            if job is not None and job.job_id == out.job_id:
                job.discard()
        raise


def _widgets() -> list[io.Input]:
    roots = list(paths.save_roots())
    return [
        io.String.Input("title", default="my_mix", tooltip="Title of the model: in its header, and as %title% in file names."),
        io.String.Input("version", default="", tooltip="In the header, and as %version% in file names. May be empty."),
        io.Combo.Input("name", options=["comfy", "quantstack", "plain", CUSTOM], default="comfy",
                       tooltip="How files are named. comfy: mix_v1_t2v_high_noise_14B_fp8_scaled. quantstack: "
                               "mix-v1-T2V-14B-HighNoise-FP8_SCALED. plain: mix_high_fp8_scaled. custom: as custom_name says."),
        io.String.Input("custom_name", default="%title%_%version%_%task%_%expert%_%format%",
                        tooltip="Name for custom, of %title% %version% %task% %size% %expert% %format%; a pair needs %expert%."),
        io.Combo.Input("folder", options=roots, default=roots[0], tooltip="Which folder of diffusion_models to write to."),
        io.String.Input("subfolder", default="", tooltip="Folder inside it, made when missing. May be empty."),
        io.Combo.Input("on_exists", options=["number", "overwrite", "error"], default="number",
                       tooltip="When another file has the name: number appends -2, overwrite replaces it at the very end, error "
                               "stops before the start. The very same model is left as it is."),
        io.Combo.Input("metadata", options=["publish", "private", "none"], default="publish",
                       tooltip="publish: title, LoRAs, base, hashes, strengths; no folder, prompt or workflow. private: all, the "
                               "recipe with its folders too. none: nothing. The header output shows it."),
        io.Boolean.Input("lora_names", default=True, tooltip="Off: publish names LoRAs by their hash alone."),
        io.Boolean.Input("plan_only", default=False, tooltip="Write nothing: show files, bytes, time, memory and free space."),
        io.Combo.Input("device", options=["auto", "cpu"], default="auto", advanced=True,
                       tooltip="auto: the graphics card if it passes a self-test, else the processor. cpu: never the card."),
        io.Combo.Input("order", options=[AUTO, *ORDERS], default=AUTO, optional=True, advanced=True,
                       tooltip="How often each base is read. all at once, expert by expert: once, for all its files. file by file: "
                               "once per file, with the least room on the disk. auto: the first that fits."),
        io.Boolean.Input("after_save", default=False, optional=True, advanced=True,
                         tooltip="Load each finished file as Load Diffusion Model does, ask it once at a high and once at a low "
                                 "sigma, and compare it with the merge in full precision. Needs memory for both."),
    ]
