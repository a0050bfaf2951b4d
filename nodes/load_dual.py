"""The node that names the model: two experts on one wire, or one file alone."""
import os
from collections import Counter

from comfy_api.latest import io

from ..engine.bases.roles import check_pair, partner, role_of
from ..engine.bases.source import open_source
from ..engine.bases.variant import detect
from ..engine.errors import SourceError
from ..engine.specs import NAMES
from . import paths, sockets
from .handles import Dit


class Wan22LoadDualDiT(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        models = paths.diffusion_models()
        first = next((name for name in models if role_of(name, {}).role == "high_noise"), models[0] if models else paths.NONE)
        return io.Schema(
            node_id="Wan22LoadDualDiT",
            display_name="Load Wan 2.2 Dual DiT",
            category="Wan 2.2 Master/1 load",
            description="Names the model to merge into: both experts of Wan 2.2 on one wire, or a single file (5B, Wan 2.1, VACE, "
                        "Fun, S2V, Animate). Reads headers only; no weight is loaded.",
            search_aliases=["wan merge", "load expert", "high noise", "low noise", "diffusion model", "unet", "base model"],
            inputs=[
                io.Combo.Input(
                    "high_noise", options=[*models, paths.NONE], default=first, display_name="high_noise / model",
                    tooltip="The high-noise expert (early steps), or the model itself when it is one file. Best in bf16, fp16 or "
                            "fp32, as safetensors or GGUF. A sharded model is listed once, by its index."),
                io.Combo.Input(
                    "low_noise", options=[paths.AUTO_PAIR, paths.NONE, *models], default=paths.AUTO_PAIR,
                    tooltip="The low-noise expert (late steps). (auto pair) finds it by swapping high and low in the file or "
                            "folder name; a model that is one file has none."),
                io.Boolean.Input(
                    "allow_quantized_source", default=False, advanced=True,
                    tooltip="Accept quantized files as a base: FP8, MXFP8, NVFP4, INT8, W4A4, W4A8, and GGUF from Q2_K to Q8_0. "
                            "What their rounding lost is lost, and a second rounding comes on top; take the bf16 or fp16 files "
                            "when you can get them."),
            ],
            outputs=[
                sockets.Dit.Output(display_name="dit", tooltip="The model, for Inject, Stability Meter or Quantize."),
                io.String.Output(display_name="info", tooltip="What the headers say: kind, size, dtypes, evidence of the pair."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def fingerprint_inputs(cls, high_noise, low_noise, **others):
        chosen = [paths.model_path(name) for name in (high_noise, low_noise) if name not in {paths.NONE, paths.AUTO_PAIR}]
        if low_noise == paths.AUTO_PAIR:
            chosen += [path for path in map(partner, chosen) if path]
        return tuple(paths.signature(path) for path in chosen)

    @classmethod
    def execute(cls, high_noise, low_noise, allow_quantized_source) -> io.NodeOutput:
        experts = choose_experts(high_noise, low_noise)
        sources = []
        try:
            for path in experts.values():
                sources.append(open_source(path, allow_lossy=allow_quantized_source))
            if len(sources) == 2:
                check_pair(*sources)
            variants = [detect(source) for source in sources]
            info = "\n".join(describe(*row) for row in zip(experts, sources, variants, strict=True))
        finally:
            for source in sources:
                source.close()
        dit = Dit(tuple(experts.items()), variants[0].title, allow_quantized_source)
        return io.NodeOutput(dit, info, ui={"text": (info,)})


def choose_experts(high_noise: str, low_noise: str) -> dict[str, str]:
    """Role -> path from the two widgets. Raises SourceError when no model is chosen, or half of a pair is missing."""
    high = None if high_noise == paths.NONE else paths.model_path(high_noise)
    low = None if low_noise in {paths.NONE, paths.AUTO_PAIR} else paths.model_path(low_noise)
    if high is None:
        if low is None:
            raise SourceError("no model is chosen; choose a file in high_noise, or a low-noise expert alone in low_noise")
        return {"low_noise": low}
    with open_source(high, allow_lossy=True) as source:
        found = role_of(high, source.metadata)
    name = os.path.basename(high)
    if found.role == "low_noise" and low_noise == paths.AUTO_PAIR:
        raise SourceError(f"{name}: stands in high_noise, but is a low-noise expert ({found.evidence}); choose it in low_noise, "
                          "and its partner in high_noise")
    if low_noise == paths.AUTO_PAIR:
        low = partner(high)
        if found.role == "high_noise" and (low is None or not paths.is_model(low)):
            raise SourceError(f"{name}: a high-noise expert ({found.evidence}), but no file has low in its place; choose the "
                              "low-noise expert by hand, or (none) to work on this half alone")
    if low is not None:
        return {"high_noise": high, "low_noise": low}
    return {found.role or "model": high}


def describe(role: str, source, variant) -> str:
    """Lines about one expert: file, kind, size, dtypes, how its role is known, what is left out, what is lost."""
    keys, bytes_of = source.keys(), Counter()
    for key in keys:
        bytes_of[source.formats.get(key) or NAMES[source.spec(key).dtype]] += source.nbytes(key)
    total = sum(bytes_of.values())
    dtypes = ", ".join(f"{name} {count / total:.0%}" for name, count in bytes_of.most_common())
    lines = [source.name if role == "model" else f"{role}: {source.name}",
             f"  {variant.title}, {len(keys)} tensors, {total / 1e9:.2f} GB, {dtypes}"]
    if role != "model":
        found = role_of(source.path, source.metadata)
        lines.append(f"  known by: {found.evidence if found.role == role else 'your choice'}")
    if source.lossy:
        lines.append(f"  lossy source ({source.lossy}): what it lost does not come back")
    return "\n".join(lines + [f"  left out: {count} tensors of {what}" for what, count in source.left_out.items()])
