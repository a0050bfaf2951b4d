"""What Calibrate puts around a MODEL: wrappers that ComfyUI calls around sampling, each evaluation and each pass of the network.

    OUTER_SAMPLE       beginning and end of a run (comfy/samplers.py, CFGGuider.sample), and its callback after each step
    PREDICT_NOISE      one evaluation of the model by the sampler: all passes for cond and uncond (CFGGuider.outer_predict_noise)
    DIFFUSION_MODEL    one pass of the network (comfy/ldm/wan/model.py, WanModel.forward): the hooks live as long as it lasts
Nothing that is sampled changes: inputs are looked at, never replaced, and no random number is drawn from torch's own generators.
"""
import os
from dataclasses import dataclass, field, replace

import torch
from comfy.patcher_extension import WrappersMP
from server import PromptServer

from ..engine.calibration.session import RunWriter, Session
from ..engine.calibration.subject import Subject
from ..engine.errors import MergeError, SourceError
from .calibration_facts import Asked, digest_of, facts_of
from .calibration_hooks import linears
from .calibration_lines import ending, line
from .calibration_run import Recording
from .calibration_settled import has_settled
from .calibration_subject import subject_of_model

WRAPPER = "wan22_master.calibrate"
COMPILED = "torch_compile_kwargs"                  # comfy_api/torch_helpers/torch_compile.py


@dataclass(frozen=True)
class Settled:
    """When to stop: no layer's largest input rose by more than `rise` over the last `runs`."""

    runs: int
    rise: float


@dataclass(frozen=True)
class Wish:
    """The widgets of one Calibrate node. folder, name: of the session; tokens: kept of each input; node: id, for its text."""

    folder: str
    name: str
    node: str
    only_blocks: bool = False
    log: bool = False
    tokens: int = 128
    allow_other_base: bool = False
    settled: Settled | None = None
    unsampled: set = field(default_factory=set, compare=False)   # digests of latents that high left as they were


def check_plain(model) -> None:
    """Raise SourceError for a MODEL whose layers are not called one by one, or on more than one device at once."""
    compiled = COMPILED in model.model_options or any(hasattr(value, "_orig_mod") for value in model.object_patches.values())
    if compiled:
        raise SourceError("calibrate: expected a MODEL whose layers can be looked into, found one under torch.compile; take that "
                          "node away while you calibrate")
    if model.model_options.get("multigpu_clones"):
        raise SourceError("calibrate: expected a MODEL on one card, found one on several; take that node away while you calibrate")


class Calibrating:
    """One expert's wrappers. subject: what the session knows it by."""

    def __init__(self, wish: Wish, role: str, subject: Subject):
        self.wish, self.role, self.subject = wish, role, subject
        self._run: Recording | None = None
        self._patches = None                       # of the MODEL that it was put on

    def put_on(self, model):
        """A clone of `model` that is recorded; a former Calibrate on it is replaced."""
        clone, self._patches = model.clone(), model.patches_uuid
        for kind, wrapper in ((WrappersMP.OUTER_SAMPLE, self.sample), (WrappersMP.PREDICT_NOISE, self.evaluate),
                              (WrappersMP.DIFFUSION_MODEL, self.forward)):
            clone.remove_wrappers_with_key(kind, WRAPPER)
            clone.add_wrapper_with_key(kind, WRAPPER, wrapper)
        return clone

    def sample(self, executor, noise, latent, sampler, sigmas, denoise_mask=None, callback=None, *rest, **more):
        """One run. It counts as finished when sampling returned; of any other one the finished steps stay.

        rest, more: disable_pbar, seed, and what later versions of ComfyUI add.
        """
        guider = executor.class_obj
        check_plain(guider.model_patcher)
        session = Session.create(os.path.dirname(self.wish.folder), self.wish.name)   # it may have been deleted since
        if self._is_enough(session, noise, latent):
            return latent
        seed = more.get("seed", rest[1] if len(rest) > 1 else None)
        facts, place = facts_of(Asked(guider, noise, sampler, sigmas, seed, None if denoise_mask is None else latent))
        run = self._recording(session, facts, guider.model_patcher)

        def after_step(step, denoised, x, total):
            run.report()
            self.say(f"{self._where(place)} {line(run, total, place)}")
            if callback is not None:
                callback(step, denoised, x, total)

        self._run = run
        try:
            sampled = executor(noise, latent, sampler, sigmas, denoise_mask, after_step, *rest, **more)
        except BaseException:
            run.give_up()
            raise
        finally:
            self._run = None
        self.say(f"{self._where(place)} {self._finished(run, session)}")
        return sampled

    def _finished(self, run: Recording, session: Session) -> str:
        """End the recording. What goes wrong then, as on a full disk, must not take the sampled latent with it: it is told, and the
        steps that were written count."""
        try:
            run.finish()
            return f"done: {ending(run, len(session.runs(self.role)))}"
        except (MergeError, OSError) as cause:
            return f"is sampled, but its record could not be ended: {cause}; its steps count as of an unfinished run"

    def evaluate(self, executor, *args, **kwargs):
        """One evaluation by the sampler."""
        if self._run is not None:
            self._run.evaluate()
        return executor(*args, **kwargs)

    def forward(self, executor, *args, **kwargs):
        """One pass of the network. Outside of a run, nothing is recorded."""
        if self._run is None:
            return executor(*args, **kwargs)
        options = kwargs["transformer_options"] if "transformer_options" in kwargs else args[5]
        return self._run.forward(options, lambda: executor(*args, **kwargs))

    def say(self, text: str) -> None:
        """A line under the node, in every browser that is open."""
        PromptServer.instance.send_progress_text(text, self.wish.node)

    def _recording(self, session: Session, facts, model) -> Recording:
        modules = linears(model.model.diffusion_model, only_blocks=self.wish.only_blocks)
        log = os.path.join(self.wish.folder, f"{self.role}.log") if self.wish.log else None

        subject = self.subject if model.patches_uuid == self._patches else repatched(self.subject, model)

        def begin(points) -> RunWriter:
            writer = session.begin_run(self.role, subject, facts, points, allow_other_base=self.wish.allow_other_base)
            return budgeted(writer, self.wish.tokens)

        return Recording(modules, begin, log)

    def _is_enough(self, session: Session, noise, latent) -> bool:
        """Whether this run is left out, as the expert has settled; the low-noise expert cannot go on from what high left out."""
        if self.wish.settled is None:
            return False
        left_out = digest_of(latent) in self.wish.unsampled and not torch.count_nonzero(noise)
        settled = has_settled(session, self.role, self.wish.settled.runs, self.wish.settled.rise)
        if settled and self.role == "high_noise":
            self.wish.unsampled.add(digest_of(latent))
        if settled:
            self.say(f"{self.role} NOT SAMPLED: settled, no largest input rose by more than {self.wish.settled.rise:.2%} over its "
                     f"last {self.wish.settled.runs} runs; turn stop_when_settled off to sample again")
        elif left_out:
            self.say(f"{self.role} NOT SAMPLED: the high-noise expert has settled and left this prompt out; turn stop_when_settled "
                     "off to sample again")
        return settled or left_out

    def _where(self, place) -> str:
        prompt = "" if place is None else f"prompt {place[0]}/{place[1]}, "
        return f"{prompt}{self.role}"


def repatched(subject: Subject, model) -> Subject:
    """The subject with what a loader behind Calibrate put on its MODEL: wrappers come along with a clone."""
    found = subject_of_model(model, "model")
    return replace(subject, loras=found.loras, recipe=found.recipe)


def budgeted(writer: RunWriter, tokens: int) -> RunWriter:
    """With the node's number of tokens for its session's; at 0 this run keeps none, and those of others stay."""
    writer.budget = writer.budget * tokens // writer.aim
    writer.aim = tokens or writer.aim
    return writer
