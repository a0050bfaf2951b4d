"""The node that makes one LoRA out of a stack, exactly or cut to a rank."""
import json
import os
from contextlib import ExitStack

from comfy_api.latest import io

from ..engine.loras.lora import open_lora
from ..engine.loras.task import task_of
from ..engine.loratools.merge import Merging, Part, merge
from ..engine.loratools.report import Report
from ..engine.loratools.wish import Ranks, Watch
from . import freshness, sockets
from .lora_halves import PAIR, by_role
from .lora_save import dtype_input, exists_input, name_input, rank_inputs, refused_input, save_as, span_of
from .progress import watched
from .widgets import check_within


class Wan22LoraMerge(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Wan22LoraMerge",
            display_name="Merge LoRAs (Wan 2.2)",
            category="Wan 2.2 Master/6 LoRA tools",
            description="Makes one LoRA of a stack, with its strengths. Use it to load five LoRAs as one, to make a large LoRA "
                        "smaller (svd), or to turn LoHa and LoKr into plain factors. A and B are never added up: the sum is exact, "
                        "but for the rounding to dtype.",
            search_aliases=["merge lora", "combine lora", "lora to lora", "resize lora", "lora rank", "svd", "loha", "lokr"],
            inputs=[
                sockets.LoraStack.Input("stack", tooltip="The LoRAs, with strengths, from LoRA Pair."),
                io.Float.Input("global_factor", default=1.0, min=-100.0, max=100.0, step=0.01, tooltip="Multiplies all strengths."),
                io.Combo.Input("method", options=["exact", "svd"], default="exact",
                               tooltip="exact: factors side by side; the rank is the sum of all ranks; an error told beside it is "
                                       "the rounding to dtype, as bf16. svd: the nearest LoRA of "
                                       "`rank`, with its error stated; takes LoHa and LoKr too."),
                *rank_inputs(), dtype_input(), name_input("merged"), exists_input(), refused_input(),
            ],
            outputs=[
                io.String.Output(display_name="path_high / path", tooltip="Path of the new file, or of its high-noise half."),
                io.String.Output(display_name="path_low", tooltip="Path of the low-noise half; empty when there is one file."),
                io.String.Output(display_name="report", tooltip="Rank and error of every layer, and what was left out, as JSON."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs):
        return freshness.token(cls.hidden.unique_id)

    @classmethod
    def execute(cls, stack, global_factor, method, rank, energy, dtype, name, on_exists, on_refused) -> io.NodeOutput:
        check_within("merge loras: global_factor", global_factor, -100.0, 100.0)
        ranks = Ranks(rank, energy or None)
        done: dict[str | None, Report] = {}
        with watched(cls.hidden.unique_id, "cpu", "stopped; nothing more was written") as node:
            halves = by_role(stack)
            for role, loras in halves.items():
                with ExitStack() as opened:
                    parts = [Part(opened.enter_context(open_lora(path)), strength * global_factor, lora.rs_lora, dict(lora.scope))
                             for lora, path, strength in loras]
                    tasks = {task_of(part.lora).task for part in parts}
                    metadata = span_of(tasks.pop() if len(tasks) == 1 else None, role)
                    save = save_as(name.strip() or "merged", role, alone=len(halves) == 1, dtype=dtype, on_exists=on_exists,
                                   metadata=metadata)
                    wish = Merging(method, ranks, role, on_refused)
                    done[role] = merge(parts, wish, save, Watch(node.should_stop, node.on_progress))
        exact = f"exact: the error is the rounding to {dtype} alone" if method == "exact" and dtype != "fp32" else ""
        return told(cls.hidden.unique_id, done, exact)


def told(node: str, done: dict[str | None, Report], remark: str = "") -> io.NodeOutput:
    """What a tool's node gives out: paths, the report as JSON, and lines for people on the node, `remark` the last of them."""
    freshness.remember(node, [each.path for each in done.values()])
    titles = {role: f"{role}: " if role else "" for role in done}
    text = "\n".join([*(titles[role] + "\n".join(each.lines()) for role, each in done.items()), *([remark] if remark else [])])
    high, low = (next((done[role].path for role in roles if role in done), "") for roles in ((None, PAIR[0]), (PAIR[1],)))
    report = {role or "model": {**each.as_json(), "path": os.path.basename(each.path)} for role, each in done.items()}
    return io.NodeOutput(high, low, json.dumps(report), ui={"text": (text,)})
