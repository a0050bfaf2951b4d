"""The node that mixes other checkpoints into a model, before any LoRA: two or three pairs in lockstep."""
import os
from dataclasses import replace
from pathlib import Path

from comfy_api.latest import io

from ..engine.errors import RecipeError, SourceError
from ..engine.jobs.plan import plan_recipe
from ..engine.recipes import scope
from ..engine.recipes.recipe import SECOND
from ..engine.recipes.recipe_parts import MIXES
from . import sockets
from .handles import Dit
from .progress import stoppable
from .recipe_handle import text
from .recipes import recipe_of, reports_folder
from .widgets import check_within

STRENGTHS = (-100.0, 100.0)                        # as in the recipe
OF_THREE = tuple(name for name, count in SECOND.items() if count == 2)
THINNED = ("ties", "dare")


class Wan22MergeCheckpoints(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        strength = {"default": 0.5, "min": STRENGTHS[0], "max": STRENGTHS[1], "step": 0.01}
        return io.Schema(
            node_id="Wan22MergeCheckpoints",
            display_name="Merge Checkpoints (Wan 2.2)",
            category="Wan 2.2 Master/2 merge",
            description="Mixes a second and a third model into the first, expert by expert, while it is read: nothing is written "
                        "here, and memory does not grow. LoRAs come after it. What does not fit stays as in a and is listed.",
            search_aliases=["merge models", "model merge", "checkpoint merge", "add difference", "weighted sum", "block merge"],
            inputs=[
                sockets.Dit.Input("a", tooltip="The model that the others are mixed into; from Load."),
                sockets.Dit.Input("b", tooltip="The second model: what is mixed in."),
                sockets.Dit.Input("c", optional=True, tooltip="The third: what b was made from; for add_difference, ties, dare."),
                io.Combo.Input("method", options=list(MIXES), default=MIXES[0],
                               tooltip="weighted_sum: a + s (b - a). add_difference: a + s (b - c). slerp: along the arc from a "
                                       "to b. ties: a + s (b - c) with only the largest differences. dare: a + s (b - c) with a "
                                       "seeded random share of them, enlarged to make up for the rest."),
                io.Float.Input("strength_high", **strength, display_name="strength_high / strength",
                               tooltip="s on the high-noise expert, or on the one model. 1 with b - a takes b whole."),
                io.Float.Input("strength_low", **strength, tooltip="s on the low-noise expert."),
                io.Float.Input("density", default=1.0, min=0.0, max=1.0, step=0.01, tooltip="What ties and dare keep of b - c."),
                io.Int.Input("drop_seed", default=0, min=0, max=2**53 - 1, advanced=True,
                             tooltip="Seed of dare; the same seed gives the same file."),
                io.String.Input("blocks", default="", advanced=True, placeholder="0-8: 0.5, ffn: 0.8",
                                tooltip="Strength by block and kind of layer: ranges such as 0-8, presets structure (0-8), motion "
                                        "(9-30), aesthetic (31-39), kinds self_attn, cross_attn, ffn, other."),
            ],
            outputs=[
                sockets.Dit.Output(display_name="dit", tooltip="The mix, for Inject, Stability Meter or Quantize."),
                io.String.Output(display_name="report", tooltip="What is mixed, and what stays as in a."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, a, b, method, strength_high, strength_low, density, drop_seed, blocks, c=None) -> io.NodeOutput:
        check_within("merge checkpoints: strength_high", strength_high, *STRENGTHS)
        check_within("merge checkpoints: strength_low", strength_low, *STRENGTHS)
        check_within("merge checkpoints: density", density, 0.0, 1.0)
        if method in THINNED and density == 0.0:
            raise RecipeError(f"merge checkpoints: density is 0, so {method} would mix in nothing; raise it")
        others = [b, c] if method in OF_THREE else [b]
        check_models(a, others, method, spare=c is not None and method not in OF_THREE)
        try:
            where = scope.parse(blocks)
        except ValueError as cause:
            raise RecipeError(f"merge checkpoints: blocks: {cause}; correct it") from cause
        strength = {"high_noise": strength_high, "low_noise": strength_low, "model": strength_high}
        mix = {"method": method, "files": {role: [dict(other.experts)[role] for other in others] for role in a.roles},
               "strength": {role: strength[role] for role in a.roles}, "density": density, "seed": drop_seed, "scope": where}
        lossy = any(each.allow_quantized_source for each in (a, *others))
        mixed = replace(a, mix=text(mix), allow_quantized_source=lossy)
        with stoppable() as wish, plan_recipe(recipe_of(mixed, device="cpu"), Path(reports_folder()), should_stop=wish) as plan:
            check_fits(plan)
            report = "\n".join([*describe(a, mix), *(f"note: {notice}" for notice in plan.notices)])
        return io.NodeOutput(mixed, report, ui={"text": (report,)})


def check_models(a: Dit, others: list[Dit | None], method: str, *, spare: bool) -> None:
    """Raise RecipeError unless there are as many plain models as the method takes, with the experts of the first."""
    if None in others:
        raise RecipeError(f"merge checkpoints: {method} takes the difference of b and c, and c is not connected; connect the model "
                          "that b was made from, or choose weighted_sum or slerp")
    if spare:
        raise RecipeError(f"merge checkpoints: {method} takes a and b alone, and c is connected; disconnect it, or choose another "
                          "method")
    for name, dit in zip("bc", others, strict=False):
        if set(dit.experts) & set(a.experts) and not dit.mix:
            raise RecipeError(f"merge checkpoints: {name} is the same file as a; choose another model")
    for name, dit in zip("abc", (a, *others), strict=False):
        if dit.passes or dit.mix:
            has = "LoRAs" if dit.passes else "a mix"
            raise RecipeError(f"merge checkpoints: {name} has {has} already; connect it before Inject, or save that model first "
                              "and load the file")
        if not set(a.roles) <= set(dit.roles):
            found = " and ".join(dit.roles)
            raise RecipeError(f"merge checkpoints: {name}: expected {' and '.join(a.roles)} as in a, found {found}; load the same "
                              "experts everywhere")


def check_fits(plan) -> None:
    """Raise SourceError when no weight of the blocks can be mixed: another size, or another kind of model."""
    for expert in plan.experts:
        kept = expert.source.kept
        if expert.block_linears <= set(kept):
            why = kept[min(expert.block_linears)]
            raise SourceError(f"merge checkpoints: {expert.source.name}: expected models of one size, found no weight of the "
                              f"blocks that fits ({why}); choose models made from the same one")


def describe(a: Dit, mix: dict) -> list[str]:
    """What is mixed into what, a line per expert."""
    bases, lines = dict(a.experts), []
    for role, files in mix["files"].items():
        named = " - ".join(os.path.basename(path) for path in files)
        expert = "" if role == "model" else f"{role}: "
        lines.append(f"{expert}{mix['method']} of {named} into {os.path.basename(bases[role])} at {mix['strength'][role]:g}")
    blocks = f", {scope.write(mix['scope'])}" if mix["scope"] else ""
    thinned = [f"density {mix['density']:g}"] if mix["density"] < 1.0 and mix["method"] in THINNED else []
    return [line + blocks for line in lines] + thinned
