"""Nodes for tests alone: conditioning without a text encoder, and what ComfyUI made of a model or latent."""
import hashlib
import json
from collections import Counter

import torch
from comfy_api.latest import ComfyExtension, io

TEXT_DIM = 4096                                    # of umt5-xxl, which every Wan model expects


class Wan22TestConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="Wan22TestConditioning", category="testing", inputs=[io.Int.Input("seed", default=0)],
                         outputs=[io.Conditioning.Output()])

    @classmethod
    def execute(cls, seed) -> io.NodeOutput:
        return io.NodeOutput([[torch.randn((1, 16, TEXT_DIM), generator=torch.Generator().manual_seed(seed)), {}]])


class Wan22TestText(io.ComfyNode):
    """In place of CLIP Text Encode: conditioning that follows from the text alone."""

    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="Wan22TestText", category="testing", inputs=[io.String.Input("text")],
                         outputs=[io.Conditioning.Output()])

    @classmethod
    def execute(cls, text) -> io.NodeOutput:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
        return Wan22TestConditioning.execute(seed)


class Wan22TestReport(io.ComfyNode):
    """Class, weights by layout, and a hash of one weight of a MODEL; mean, spread and hash of a LATENT."""

    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="Wan22TestReport", category="testing", is_output_node=True,
                         inputs=[io.Model.Input("model", optional=True), io.Latent.Input("latent", optional=True)])

    @classmethod
    def execute(cls, model=None, latent=None) -> io.NodeOutput:
        told = {}
        if model is not None:
            modules = dict(model.model.diffusion_model.named_modules())
            weights = [module.weight for module in modules.values() if hasattr(module, "weight")]
            told["config"] = type(model.model.model_config).__name__
            told["layouts"] = Counter(str(getattr(weight, "_layout_cls", None)) for weight in weights)
            weight = modules["blocks.0.ffn.0"].weight
            told["weight"] = _digest(weight.dequantize() if hasattr(weight, "_layout_cls") else weight.detach())
        if latent is not None:
            samples = latent["samples"].float()
            told |= {"std": samples.std().item(), "finite": bool(samples.isfinite().all()), "latent": _digest(samples)}
        return io.NodeOutput(ui={"text": (json.dumps(told),)})


class Wan22TestLoraStack(io.ComfyNode):
    """The community's LORA_STACK, as JSON in a widget."""

    @classmethod
    def define_schema(cls):
        return io.Schema(node_id="Wan22TestLoraStack", category="testing", inputs=[io.String.Input("stack")],
                         outputs=[io.Custom("LORA_STACK").Output()])

    @classmethod
    def execute(cls, stack) -> io.NodeOutput:
        return io.NodeOutput([tuple(entry) for entry in json.loads(stack)])


def _digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.float().contiguous().numpy().tobytes()).hexdigest()


class Extension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [Wan22TestConditioning, Wan22TestText, Wan22TestLoraStack, Wan22TestReport]


async def comfy_entrypoint():
    return Extension()
