"""The node that records, while you sample, what the inputs of each layer are."""
from comfy.ldm.wan.model import WanModel
from comfy_api.latest import io
from comfy_execution.utils import get_executing_context

from ..engine.bases.prefixes import HIGH, LOW
from ..engine.calibration.session import ALLOW, Session
from ..engine.errors import RecipeError, SourceError
from . import calibration_files, sockets
from .calibration_hooks import bypassed, linears
from .calibration_lines import coming
from .calibration_subject import subject_of_model
from .calibration_wrappers import Calibrating, Settled, Wish, check_plain
from .handles import Calibration
from .model_role import model_name, role_of_model
from .widgets import check_filled

APPEND, RESTART = "append", "restart"
ALL, BLOCKS = "all linears", "linears of blocks"
STATS, LOG = "stats", "stats and log"
_emptied: dict[str, str | None] = {}                # session's folder -> id of the queue that began it anew last


class Wan22Calibrate(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Wan22Calibrate",
            display_name="Calibrate (Wan 2.2)",
            category="Wan 2.2 Master/3 calibrate",
            description="Put it between loader and sampler and run your prompts: while they are sampled it records how large the "
                        "inputs of each layer get and what they are like, per expert, step, and cond and uncond. Scales, "
                        "sensitivities and better rounding follow from that. The video stays the same, bit for bit. Everything is "
                        "on disk after each step.",
            search_aliases=["calibration", "activation statistics", "imatrix", "input scale logger", "amax"],
            inputs=[
                io.Model.Input("model_high", optional=True,
                               tooltip="The high-noise expert, or a model of one file (5B): 16 bit, FP8, a merge preview, GGUF."),
                io.Model.Input("model_low", optional=True, tooltip="The low-noise expert."),
                io.String.Input("session", default="calib_01",
                                tooltip="Name of what is recorded: a folder in user/default/wan22_master/calibration."),
                io.Combo.Input("mode", options=[APPEND, RESTART], default=APPEND,
                               tooltip="append: further runs add to the session. restart: what it holds is deleted when this node "
                                       "runs, which ComfyUI does once as long as nothing before it changes."),
                io.Combo.Input("layers", options=[ALL, BLOCKS], default=ALL,
                               tooltip="all linears: text, time and head too. linears of blocks: those that are quantized."),
                io.Combo.Input("keep", options=[STATS, LOG], default=STATS,
                               tooltip="stats and log: also a line for each call and layer, for the original converter's scripts."),
                io.Int.Input("tokens", default=128, min=0, max=4096,
                             tooltip="Inputs kept of each layer, for sensitivity and for the choice of weights. 0: none."),
                io.Boolean.Input("stop_when_settled", default=False,
                                 tooltip="Leave further prompts unsampled when the last ones raised no layer's largest input. "
                                         "Their video is then empty, and this node says so."),
                io.Int.Input("settled_runs", default=4, min=1, max=100, advanced=True,
                             tooltip="For stop_when_settled: over how many runs of an expert nothing may rise."),
                io.Float.Input("settled_rise", default=0.01, min=0.0, max=1.0, step=0.005, advanced=True,
                               tooltip="For stop_when_settled: how much counts as none; 0.01 is 1 %."),
                io.Boolean.Input("allow_other_base", default=False, advanced=True,
                                 tooltip="Add to a session that was recorded on another base model, or pair and single file. Its "
                                         "numbers then mix both."),
            ],
            outputs=[io.Model.Output(display_name="model_high", tooltip="The same model, recorded while it samples."),
                     io.Model.Output(display_name="model_low", tooltip="The same for the low-noise expert."),
                     sockets.Calib.Output(display_name="calibration", tooltip="The session, for Summary and Sensitivity."),
                     io.String.Output(display_name="info", tooltip="What will be recorded, and what cannot be.")],
            hidden=[io.Hidden.unique_id],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, session, mode, layers, keep, tokens, stop_when_settled, settled_runs, settled_rise, allow_other_base,
                model_high=None, model_low=None) -> io.NodeOutput:
        check_filled("calibrate: session", session)
        models = by_role(model_high, model_low)
        found, anew = calibration_files.create(session.strip()), mode == RESTART
        wish = Wish(found.folder, found.name, cls.hidden.unique_id, layers == BLOCKS, keep == LOG, tokens,
                    allow_other_base, Settled(settled_runs, settled_rise) if stop_when_settled else None)
        lines, clones = [f"session {found.name}{', emptied first' if anew else ''}"], {}
        for role, model in models.items():
            subject = subject_of_model(model, "model_high" if model is model_high else "model_low")
            lines += [f"{role}: {line}" for line in told(model, wish)]
            lines += [] if anew else [f"{role}: {line}" for line in checked(found, role, subject, allow=allow_other_base)]
            clones[role] = Calibrating(wish, role, subject).put_on(model)
        if anew:
            empty(found)
        text, low = "\n".join(lines), clones.get(LOW) if model_low is not None else None
        high = None if model_high is None else next(iter(clones.values()))
        return io.NodeOutput(high, low, Calibration(found.folder, found.name), text, ui={"text": (text,)})


def by_role(high, low) -> dict:
    """Role -> MODEL, high first. Raises RecipeError for none, SourceError for no Wan model, or one in the other's place."""
    if high is None and low is None:
        raise RecipeError("calibrate: expected a MODEL, found none connected; connect model_high, model_low or both")
    for model in (each for each in (high, low) if each is not None):
        if not isinstance(model.model.diffusion_model, WanModel):
            raise SourceError(f"calibrate: {model_name(model)}: expected a Wan model, found {type(model.model).__name__}; connect "
                              "another MODEL")
        check_plain(model)
    if high is not None and low is None:
        return {role_of_model(high).role or "model": high}
    for model, role, other in ((high, HIGH, LOW), (low, LOW, HIGH)):
        found = None if model is None else role_of_model(model)
        if found is not None and found.role == other:
            raise SourceError(f"calibrate: {model_name(model)}: expected the {role} expert, found {other} ({found.evidence}); "
                              "connect it to the other input")
    return {role: model for role, model in ((HIGH, high), (LOW, low)) if model is not None}


def empty(session: Session) -> None:
    """Begin a session anew, once in a queue: another Calibrate of it there goes on with it."""
    context = get_executing_context()
    queue = None if context is None else context.prompt_id
    if queue is None or _emptied.get(session.folder) != queue:
        session.clear()
        _emptied[session.folder] = queue


def checked(session: Session, role: str, subject, *, allow: bool) -> list[str]:
    """What the user should know of the model against the one that the session was recorded on. Raises SourceError for another base
    or kind of model, unless that is allowed."""
    errors, warnings = session.compare(role, subject)
    if errors and not allow:
        raise SourceError(f"calibrate: session {session.name}: {role}: {'; '.join(errors)}; {ALLOW}")
    return [*(f"allowed by allow_other_base: {error}" for error in errors), *warnings]


def told(model, wish: Wish) -> list[str]:
    """Which layers will be seen."""
    modules = linears(model.model.diffusion_model, only_blocks=wish.only_blocks)
    if not modules:
        raise SourceError(f"calibrate: {model_name(model)}: expected linear layers, found none; connect another MODEL")
    return coming(modules, bypassed(modules), model_name(model))
