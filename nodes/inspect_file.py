"""The node that tells what a model file is: formats, scales, recipe, faults, and which programs open it."""
import json
import os

from comfy_api.latest import io

from ..engine.inspection import inspect, lines
from . import paths, sockets
from .judge import finite

FILES = "(files)"


class Wan22Inspect(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Wan22Inspect",
            display_name="Inspect Model File (Wan 2.2)",
            category="Wan 2.2 Master/5 save",
            description="What is in a model file, from its header: format of each layer, scales, metadata, the recipe inside, what "
                        "ComfyUI would stumble over, and which programs open it. Reads no weights.",
            search_aliases=["inspect", "model info", "file info", "header", "metadata", "check model", "validate"],
            inputs=[
                io.Combo.Input("file", options=[FILES, *paths.diffusion_models()], default=FILES,
                               tooltip="A model file; (files): what is connected."),
                sockets.Files.Input("files", optional=True, tooltip="What Save Model wrote."),
            ],
            outputs=[io.String.Output(display_name="text", tooltip="As on the node."),
                     io.String.Output(display_name="json", tooltip="The same as JSON, with every layer.")],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return float("nan")                        # a file may change under its name, and looking costs milliseconds

    @classmethod
    def execute(cls, file, files=None) -> io.NodeOutput:
        found = [finite(inspect(path)) for path in chosen(file, files)]
        text = "\n".join(line for each in found for line in lines(each)) or "nothing is chosen: choose a file, or connect files"
        return io.NodeOutput(text, json.dumps(found), ui={"text": (text,)})


def chosen(file: str, files) -> list[str]:
    """Paths of what is to be looked at. Raises SourceError for a name that is not in the list."""
    if file != FILES:
        return [paths.model_path(file)]
    return [each.path for each in files.files if os.path.exists(each.path)] if files is not None else []
