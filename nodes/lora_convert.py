"""The node that spells a LoRA as another program wants it, splits a file of both experts, or joins two halves."""
import os

from comfy_api.latest import io

from ..engine.loras.lora import open_lora
from ..engine.loras.task import task_of
from ..engine.loratools.convert import Conversion, Converted, convert, experts_of, join
from ..engine.loratools.spelling import DIALECTS
from ..engine.loratools.wish import Watch
from . import freshness, paths
from .lora_halves import PAIR, check_half, check_join, check_no_halves, known_role
from .lora_save import SPAN, exists_input, name_input, refused_input, save_as, span_of
from .progress import watched

HALVES = ["auto", "split", *PAIR]


class Wan22LoraConvert(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        loras = paths.loras()
        return io.Schema(
            node_id="Wan22LoraConvert",
            display_name="Convert LoRA (Wan 2.2)",
            category="Wan 2.2 Master/6 LoRA tools",
            description="Saves a LoRA under the key names of another program; no number changes. Use it when a loader reports "
                        "keys not loaded, when one file holds both experts and you need two, or the other way round.",
            search_aliases=["convert lora", "lora keys", "split lora", "join lora", "kohya", "musubi", "diffusers", "onetrainer",
                            "lora key not loaded"],
            inputs=[
                io.Combo.Input("lora", options=loras or [paths.NONE], tooltip="The LoRA, in any dialect this pack reads."),
                io.Combo.Input("lora_low", options=[paths.NONE, *loras], default=paths.NONE,
                               tooltip="Low-noise half to be joined with lora into one file (to: diffusers or omi)."),
                io.Combo.Input("to", options=list(DIALECTS), default="native",
                               tooltip="native: what ComfyUI loads (diffusion_model., lora_A, lora_B). native_down_up: the same, "
                                       "spelled lora_down and lora_up. kohya: lora_unet_, for musubi-tuner. diffusers: "
                                       "transformer. names, alphas in the metadata. omi: OneTrainer."),
                io.Combo.Input("halves", options=HALVES, default="auto",
                               tooltip="Of a file that holds both experts. auto: one file where the dialect can hold both, else "
                                       "two. split: two files. high_noise, low_noise: that half alone; of a file without a word on "
                                       "its expert, what it is for."),
                name_input("the name of the LoRA and the dialect"), exists_input(), refused_input(),
            ],
            outputs=[
                io.String.Output(display_name="path_high / path", tooltip="Path of the new file, or of its high-noise half."),
                io.String.Output(display_name="path_low", tooltip="Path of the low-noise half; empty when there is one file."),
                io.String.Output(display_name="report", tooltip="Every key that was not converted, with its reason."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def fingerprint_inputs(cls, lora, lora_low, **others):
        files = tuple(paths.signature(paths.lora_path(name)) for name in (lora, lora_low) if name != paths.NONE)
        return files, freshness.token(cls.hidden.unique_id)

    @classmethod
    def execute(cls, lora, lora_low, to, halves, name, on_exists, on_refused) -> io.NodeOutput:
        path, low = paths.lora_path(lora), None if lora_low == paths.NONE else paths.lora_path(lora_low)
        name = name.strip() or f"{os.path.splitext(lora)[0]}_{to}"
        with watched(cls.hidden.unique_id, "cpu", "stopped; nothing was written") as node:
            watch = Watch(node.should_stop, node.on_progress)
            if low is None:
                done = convert_file(path, (to, halves, on_refused), (name, on_exists), watch)
            else:
                check_no_halves(halves)
                with open_lora(path) as first, open_lora(low) as second:
                    check_join(first, second)
                    save = save_as(name, None, on_exists=on_exists)
                    done = {None: join(first, second, Conversion(to, None, on_refused), save, watch)}
        freshness.remember(cls.hidden.unique_id, [each.path for each in done.values()])
        text = "\n".join(line for each in done.values() for line in [os.path.basename(each.path), *each.lines()])
        high, low = (next((done[role].path for role in roles if role in done), "") for roles in ((None, PAIR[0]), (PAIR[1],)))
        return io.NodeOutput(high, low, text, ui={"text": (text,)})


def convert_file(path: str, wish: tuple[str, str, str], target: tuple[str, str], watch: Watch) -> dict[str | None, Converted]:
    """One file, whole (None) or by halves. wish: dialect, a value of HALVES, on_refused; target: name, on_exists."""
    (to, halves, on_refused), (name, on_exists) = wish, target
    with open_lora(path) as lora:
        is_both = len(experts_of(lora)) == 2
        split = is_both and (halves == "split" or (halves == "auto" and not DIALECTS[to].holds_both))
        wanted = PAIR if split else (None,) if halves in {"auto", "split"} else (halves,)
        done = {}
        for role in wanted:
            if role and not is_both:
                check_half(lora, role, "halves")
            expert = role or known_role(lora)
            said = span_of(task_of(lora).task, expert)
            save = save_as(name, expert, alone=len(wanted) == 1, on_exists=on_exists, metadata=said)
            done[role] = convert(lora, Conversion(to, role, on_refused, said.get(SPAN)), save, watch)
    return done
