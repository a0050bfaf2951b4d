"""The node that saves what adaptive injection makes of each LoRA as an ordinary LoRA."""
import os
from pathlib import Path

from comfy_api.latest import io

from ..engine.errors import RecipeError
from ..engine.jobs.plan import plan_recipe
from ..engine.loratools.gated import save_gated
from ..engine.loratools.report import Report
from ..engine.loratools.wish import Watch
from ..engine.preview import settle
from . import freshness, sockets
from .lora_save import dtype_input, exists_input, name_input, save_as, span_of
from .progress import stoppable, watched
from .recipes import recipe_of, reports_folder


class Wan22LoraGated(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Wan22LoraGated",
            display_name="Save Gated LoRA (Wan 2.2)",
            category="Wan 2.2 Master/6 LoRA tools",
            description="Saves each adaptive LoRA of Inject as what its gate lets through, at strength 1: a LoRA that any loader "
                        "adds to this base with nearly the effect of adaptive. The limiter belongs to the mix and is not in it.",
            search_aliases=["gated lora", "adaptive lora", "export lora", "save lora", "bake gate"],
            inputs=[sockets.Dit.Input("dit", tooltip="The model with LoRAs of method adaptive, from Inject."), dtype_input(),
                    name_input("the name of the LoRA and gated"), exists_input()],
            outputs=[io.String.Output(display_name="paths", tooltip="Paths of the new files, one a line."),
                     io.String.Output(display_name="report", tooltip="What each file holds, and what could not be in it.")],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return freshness.token(cls.hidden.unique_id)

    @classmethod
    def execute(cls, dit, dtype, name, on_exists) -> io.NodeOutput:
        reports, done = Path(reports_folder()), []
        with stoppable() as wish, plan_recipe(recipe_of(dit, device="cpu"), reports, should_stop=wish) as plan, \
                watched(cls.hidden.unique_id, "cpu", "stopped; nothing more was written") as node:
            watch = Watch(node.should_stop, node.on_progress)
            for expert in plan.experts:
                settle(plan, expert.role, reports=reports, should_stop=node.should_stop, on_progress=node.on_progress)
                done += [one(expert, who, (name, dtype, on_exists), watch) for who in gated_ones(expert)]
        if not done:
            raise RecipeError("gated lora: expected a LoRA of method adaptive, found none; set it in Inject or LoRA Pair")
        freshness.remember(cls.hidden.unique_id, [each.path for each in done])
        text = "\n".join(line for each in done for line in each.lines())
        return io.NodeOutput("\n".join(each.path for each in done), text, ui={"text": (text,)})


def gated_ones(expert) -> list[int]:
    """Numbers of the expert's LoRAs that the measuring step gated."""
    return sorted({who for whats in expert.contributions.values() for who, what in whats if what.gated is not None})


def one(expert, who: int, target: tuple[str, str, str], watch: Watch) -> Report:
    """One LoRA of one expert. target: name, dtype, on_exists; the expert stands in the file's name once."""
    name, dtype, on_exists = target
    lora, own = expert.matched[who][0], len(gated_ones(expert)) > 1 or not name.strip()
    stem = f"{os.path.splitext(lora.name)[0]}_gated"
    title = stem if not name.strip() else f"{name.strip()}_{stem}" if own else name.strip()
    role = None if expert.role == "model" else expert.role
    metadata = span_of(expert.variant.task, expert.role)
    return save_gated(expert, who, save_as(title, role, alone=True, dtype=dtype, on_exists=on_exists,
                                                metadata=metadata), watch)
