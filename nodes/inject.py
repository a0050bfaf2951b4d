"""The node that says which LoRAs are merged into the model, and by which method: one pass."""
import json
from dataclasses import replace
from pathlib import Path

from comfy_api.latest import io

from ..engine.errors import LoraError, RecipeError
from ..engine.jobs.plan import plan_recipe
from . import sockets
from .handles import Dit, MergePass, Recipe
from .inject_rules import ADAPTIVE, CLASSIC, PREFIX, RULES, both_options, describe_rules, options_of, overruled, settings_of
from .inject_widgets import adaptive_inputs, option_inputs, rule_inputs
from .ledger_text import describe_plan, unused
from .progress import stoppable
from .recipe_handle import OPTIONS
from .recipes import recipe_of, reports_folder
from .widgets import check_within

FACTORS = (0.0, 4.0)                               # as in the recipe
CONSTANTS = (0.0, 100.0)                           # as in the recipe


class Wan22ActionMasterInject(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Wan22ActionMasterInject",
            display_name="Action-Master LoRA Inject",
            category="Wan 2.2 Master/2 merge",
            description="Merges a stack of LoRAs into the model: one pass. Chain several for several passes, all against the "
                        "original base. Reads headers only; the weights are merged when Save or Stability Meter runs.",
            search_aliases=["merge lora", "bake lora", "inject lora", "action master", "fuse lora", "lora to model"],
            inputs=[
                sockets.Dit.Input("dit", tooltip="The model, from Load or from another Inject."),
                sockets.LoraStack.Input("stack", optional=True, tooltip="The LoRAs of this pass. Connect this or recipe."),
                sockets.Recipe.Input(
                    "recipe", optional=True, tooltip="Passes of another Inject, put on this model as they are, in place of stack."),
                io.Combo.Input(
                    "method", options=["auto", "addition", "classic", "adaptive"], default="auto",
                    tooltip="addition: exactly as trained. adaptive: what the base does itself already is thinned, what is new "
                            "passes, and the sum is held below a limit. classic: the original gate: in each layer it zeroes "
                            "changes below a threshold of their mean size, and scales the layer's whole change down when its "
                            "largest value exceeds a limit. auto: the recommended one; what it became is shown and saved."),
                io.Float.Input("global_factor", default=1.0, min=FACTORS[0], max=FACTORS[1], step=0.01,
                               tooltip="Multiplies every strength of this pass."),
                io.String.Input("pass_name", default="", placeholder="name of the pass (empty: numbered)",
                                tooltip="Name of this pass in reports. Empty: Pass 1, Pass 2, ..."),
                io.Boolean.Input(
                    "gate_distillation", default=False, advanced=True,
                    tooltip="Let classic gate distillation LoRAs (Lightning, lightx2v, ...) too. They work only when exact, so "
                            "they are added as trained unless you insist here."),
                io.Combo.Input("on_mismatch", options=["error", "warn"], default="error", advanced=True,
                               tooltip="What happens to a LoRA whose name or header says it is made for the other expert."),
                *(io.Float.Input(PREFIX + name, default=value, min=CONSTANTS[0], max=CONSTANTS[1], step=0.01, advanced=True,
                                 tooltip=f"Of classic: {what}")
                  for name, (value, what) in CLASSIC.items()),
                *rule_inputs(), *option_inputs(), *adaptive_inputs(),
            ],
            outputs=[
                sockets.Dit.Output(display_name="dit", tooltip="The model with this pass added."),
                sockets.Recipe.Output(display_name="recipe", tooltip="All passes so far, without the model: for another Inject."),
                io.String.Output(display_name="report", tooltip="Per LoRA: rank, alpha, method, keys matched and refused."),
            ],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, dit, method, global_factor, pass_name, gate_distillation, on_mismatch,
                stack=None, recipe=None, **more) -> io.NodeOutput:
        if (stack is None) == (recipe is None):
            raise RecipeError("inject: expected LoRAs by stack or by recipe, one of the two; connect a LoRA Pair to stack")
        check_within("inject: global_factor", global_factor, *FACTORS)
        constants = {name: value for name, value in more.items() if name.startswith((PREFIX, ADAPTIVE))}
        for name, value in constants.items():
            check_within(f"inject: {name}", value, *CONSTANTS)
        asked = {name: more.get(name, usual) for name, usual in OPTIONS.items()}
        rules = {name: more.get(name, usual) for name, usual in RULES.items()}
        if recipe is None:
            classic = tuple((name.removeprefix(PREFIX), value) for name, value in constants.items() if name.startswith(PREFIX))
            name = pass_name.strip() or f"Pass {len(dit.passes) + 1}"
            settings = settings_of(rules, constants)
            added = (MergePass(name, method, global_factor, gate_distillation, classic, stack.loras, settings),)
            options, notes = options_of(dit, asked), []
        else:
            said = json.loads(recipe.options)
            added, options = recipe.passes, options_of(dit, both_options(OPTIONS | said, asked))
            own = {"method": method, "global_factor": global_factor, "pass_name": pass_name, "gate_distillation": gate_distillation}
            notes = overruled(own | rules | constants | {name: asked[name] for name in ("compat", "normalize")})
        notes += check_experts(added, dit, on_mismatch)
        merged = replace(dit, passes=(*dit.passes, *added), options=options)
        planned = recipe_of(merged, device="cpu")  # headers need no card
        with stoppable() as wish, plan_recipe(planned, Path(reports_folder()), should_stop=wish) as plan:
            merged = replace(merged, passes=with_resolved_methods(merged.passes, plan.recipe, merged.roles))
            report = "\n".join([*describe_plan(plan), *describe_rules(plan.recipe), *notes])
        return io.NodeOutput(merged, Recipe(merged.passes, merged.options), report, ui={"text": (report,)})


def check_experts(passes: tuple[MergePass, ...], dit: Dit, on_mismatch: str) -> list[str]:
    """Notes on LoRA files that may sit on the wrong expert, or on none. Raises LoraError where `on_mismatch` says so."""
    loras = [lora for merge_pass in passes for lora in merge_pass.loras]
    doubts = [] if "model" in dit.roles else [doubt for lora in loras for doubt in lora.doubts]
    if doubts and on_mismatch == "error":
        raise LoraError(f"{doubts[0]}; swap the two files in LoRA Pair, or set on_mismatch to warn")
    return doubts + [line for lora in loras for line in unused(lora, dit.roles)]


def with_resolved_methods(passes: tuple[MergePass, ...], planned, roles: tuple[str, ...]) -> tuple[MergePass, ...]:
    """The passes with what became of each LoRA's method beside the asked one, which a later plan needs to tell the difference.

    planned: the plan's recipe; its passes hold the same LoRAs in the same order, without those for no loaded expert.
    """
    done = []
    for merge_pass, plan_pass in zip(passes, planned.passes, strict=True):
        methods = iter([entry.resolved for entry in plan_pass.loras])
        done.append(replace(merge_pass, loras=tuple(
            replace(lora, resolved=next(methods) if lora.as_json(roles) else None) for lora in merge_pass.loras)))
    return tuple(done)
