"""What a sampler tells of the run that it begins: seed, size, steps, cfg, and the prompt, as far as anybody knows it.

A prompt of the Prompt List is known whole. Else the texts are those of the queued graph that the sampler hangs on, and the run is
known by seed, size, steps, cfg and a SHA-256 of what the text encoder, and the image's, made: a repeated prompt counts once.
"""
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ..engine.calibration.session import RunFacts
from . import prompt_register
from .model_role import model_name

ID_DIGITS = 16                                     # 64 bits of a SHA-256: no two of a session's runs meet by chance
LIST = "Wan22PromptList"
LONGEST_WAY = 50                                   # nodes between a sampler and its text
_known: dict[tuple[str, int | None], prompt_register.Entry] = {}   # id of a queue and place in its list -> prompt


@dataclass(frozen=True)
class Asked:
    """One call of a sampler. noise: (batch, channels, frames, height, width); image: the latent where a mask keeps part of it."""

    guider: object
    noise: torch.Tensor
    sampler: object
    sigmas: torch.Tensor
    seed: int | None
    image: torch.Tensor | None = None

    @property
    def steps(self) -> int:
        return max(len(self.sigmas) - 1, 0)

    @property
    def size(self) -> tuple[int, int, int]:
        """Width, height, frames of the video: a latent has one frame for the first, then one for each four (Wan's VAE)."""
        form = self.guider.model_patcher.model.latent_format
        frames, height, width = self.noise.shape[-3:]
        return (width * form.spacial_downscale_ratio, height * form.spacial_downscale_ratio,
                (frames - 1) * form.temporal_downscale_ratio + 1)


def facts_of(asked: Asked) -> tuple[RunFacts, tuple[int, int] | None]:
    """The run's facts, and its place among how many prompts, from 1, where the Prompt List tells it."""
    width, height, frames = asked.size
    cfg, entry = getattr(asked.guider, "cfg", None), _entry(asked)
    texts = _texts() if entry is None else {"positive": entry.prompt, "negative": entry.negative}
    known = entry.prompt_id if entry is not None else made_id(asked, cfg)
    facts = RunFacts(prompt_id=known, prompt=texts.get("positive", ""), negative=texts.get("negative", ""), seed=asked.seed,
                     steps=asked.steps, cfg=None if cfg is None else float(cfg), width=width, height=height, frames=frames,
                     image="" if entry is None else entry.image, sampler=sampler_name(asked.sampler),
                     model=model_name(asked.guider.model_patcher), part=part_of(asked.sigmas))
    return facts, None if entry is None else prompt_register.place_of(entry)


def part_of(sigmas: torch.Tensor) -> str:
    """`1 to 0.875`: which part of a schedule a run does."""
    return " to ".join(f"{sigma:.4g}" for sigma in (sigmas[0].item(), sigmas[-1].item())) if len(sigmas) else ""


def _entry(asked: Asked) -> prompt_register.Entry | None:
    """The prompt of the Prompt List. A sampler that goes on from another's latent may have any seed, as it draws no noise: it runs
    the prompt of the sampler that had its place in the list."""
    context, found = get_executing_context(), running()
    here = None if context is None else (context.prompt_id, context.list_index)
    if here in _known and not torch.count_nonzero(asked.noise):
        return _known[here]
    lists = None if found is None else [node for node, each in found[0].items() if each.get("class_type") == LIST]
    entry = prompt_register.find(asked.seed, *asked.size, _total_steps() or asked.steps, lists=lists)
    if here is None or entry is None:
        return entry
    for other in [other for other in _known if other[0] != here[0]]:
        del _known[other]                          # of a queue that is over
    _known[here] = entry
    return entry


def made_id(asked: Asked, cfg: float | None) -> str:
    """Id of a prompt that nobody registered."""
    told = [asked.seed, *asked.size, asked.steps, cfg, asked_digest(asked)]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:ID_DIGITS]


def asked_digest(asked: Asked) -> str:
    """SHA-256 of everything that the conditionings hold: texts, and image where there is one."""
    conds = getattr(asked.guider, "original_conds", {})
    told = [kind + name + digest_of(cond[name]) for kind in ("positive", "negative") for cond in conds.get(kind, ())
            for name in sorted(cond) if isinstance(cond[name], torch.Tensor)]
    return hashlib.sha256(json.dumps([*told, None if asked.image is None else digest_of(asked.image)]).encode()).hexdigest()


def digest_of(tensor: torch.Tensor) -> str:
    """SHA-256 of the values, as float32."""
    return hashlib.sha256(tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()).hexdigest()


def sampler_name(sampler) -> str:
    """`euler` for ComfyUI's k-diffusion samplers, else the class."""
    named = getattr(getattr(sampler, "sampler_function", None), "__name__", "") or type(sampler).__name__
    return named.removeprefix("sample_")


def running() -> tuple[Mapping, str] | None:
    """The graph that is being run, in API form, and the id of the node that runs; None outside of ComfyUI's queue."""
    context, queue = get_executing_context(), getattr(PromptServer.instance, "prompt_queue", None)
    if context is None or queue is None:
        return None
    for item in queue.get_current_queue_volatile()[0]:
        if item[1] == context.prompt_id and context.node_id in item[2]:
            return item[2], context.node_id
    return None


def _total_steps() -> int | None:
    """Steps of the whole schedule, of which a sampler of one expert runs a part; None when they are no number in the graph."""
    found = running()
    steps = found and found[0][found[1]].get("inputs", {}).get("steps")
    return steps if isinstance(steps, int) else None


def _texts() -> dict[str, str]:
    found = running()
    return {} if found is None else {name: text_of(*found, name) for name in ("positive", "negative")}


def text_of(graph: Mapping, node: str, name: str) -> str:
    """The text that reaches the input `name` of a sampler; empty where it is no literal text.

    Follows the input of that name where there is one, as through Wan Image To Video, and else the only CONDITIONING there is.
    """
    for _ in range(LONGEST_WAY):
        inputs = graph.get(node, {}).get("inputs", {})
        if isinstance(inputs.get("text"), str):
            return inputs["text"]
        link = next((inputs[each] for each in (name, "conditioning", "guider", "cond") if isinstance(inputs.get(each), list)), None)
        if link is None:
            return ""
        node = str(link[0])
    return ""
