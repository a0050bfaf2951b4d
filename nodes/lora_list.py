"""Two nodes that make a stack of many LoRAs at once: from lines of text, and from the LORA_STACK of other packs."""
import os

from comfy_api.latest import io

from ..engine.errors import LoraError, RecipeError
from ..engine.loras.routing import strengths
from . import paths, sockets
from .handles import LoraStack
from .lora_pair import STRENGTHS
from .place_lora import MISSING, SIDES, Wanted, place
from .widgets import check_within

MISSING_HALF = {"options": list(MISSING), "default": MISSING[0]}
HALF_TIP = "When a file is made for one expert and its other half is not listed. add: take it from beside it, at the same strength."


class Wan22LoraList(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Wan22LoraList",
            display_name="LoRA List (Wan 2.2)",
            category="Wan 2.2 Master/2 merge",
            description="Many LoRAs as lines of text: name, colon, strength, or high;low. High-noise and low-noise halves find "
                        "each other; a file for both experts goes on both. With @high, @low or @both behind it, your word "
                        "counts.",
            search_aliases=["lora list", "multi lora", "lora text", "stack loras", "power lora"],
            inputs=[
                sockets.LoraStack.Input("stack", optional=True, tooltip="LoRAs before these."),
                io.String.Input("loras", multiline=True, default="", placeholder="my_style.safetensors : 0.8\n"
                                "lightning_high.safetensors : 1.0\nold_i2v.safetensors : 3.0;1.5 @both",
                                tooltip="One LoRA a line, as it stands in the loras folder. Lines that begin with # are left out."),
                io.Combo.Input("missing_half", **MISSING_HALF, tooltip=HALF_TIP),
            ],
            outputs=[sockets.LoraStack.Output(display_name="stack", tooltip="All LoRAs so far, for Inject.")],
            has_intermediate_output=True,
        )

    @classmethod
    def fingerprint_inputs(cls, loras, **others):
        return tuple(paths.signature(each.path) for each in read_lines(loras))

    @classmethod
    def execute(cls, loras, missing_half, stack=None) -> io.NodeOutput:
        return stacked(stack, read_lines(loras), missing_half)


class Wan22ImportLoraStack(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="Wan22ImportLoraStack",
            display_name="Import LORA_STACK (Wan 2.2)",
            category="Wan 2.2 Master/2 merge",
            description="Takes the LORA_STACK of other packs (Lora Manager, Efficiency, Easy Use, Comfyroll). The strength on the "
                        "model counts; that on the text encoder does not.",
            search_aliases=["lora stack", "lora stacker", "lora manager", "cr lora stack"],
            inputs=[
                io.Custom("LORA_STACK").Input("lora_stack", tooltip="From a LoRA stacker of another pack."),
                sockets.LoraStack.Input("stack", optional=True, tooltip="LoRAs before these."),
                io.Combo.Input("side", options=list(SIDES), default=SIDES[0],
                               tooltip="Which expert they go on. auto: as each file's header or name says; one that says nothing "
                                       "goes on both."),
                io.Combo.Input("missing_half", **MISSING_HALF, tooltip=HALF_TIP),
            ],
            outputs=[sockets.LoraStack.Output(display_name="stack", tooltip="All LoRAs so far, for Inject.")],
            has_intermediate_output=True,
        )

    @classmethod
    def execute(cls, lora_stack, side, missing_half, stack=None) -> io.NodeOutput:
        wanted = []
        for entry in lora_stack or ():
            if not isinstance(entry, list | tuple) or len(entry) < 2 or not isinstance(entry[0], str):
                raise LoraError(f"lora stack: expected (name, strength, clip strength), found {entry!r:.80}; check the node before")
            if isinstance(entry[1], bool) or not isinstance(entry[1], int | float):
                found = f"expected a number as strength, found {entry[1]!r:.40}"
                raise LoraError(f"lora stack: {entry[0]}: {found}; check the node before")
            if entry[0] not in {"None", paths.NONE, ""}:
                name = entry[0].replace("\\", os.sep).replace("/", os.sep)   # as that pack's system writes folders
                wanted.append(Wanted(paths.lora_path(name), side, float(entry[1]), float(entry[1])))
        return stacked(stack, wanted, missing_half)


def stacked(stack: LoraStack | None, wanted: list[Wanted], missing: str) -> io.NodeOutput:
    """The stack with these files behind it, and in words where each goes."""
    for each in wanted:
        check_within(f"{each.name}: strength", each.strength_high, *STRENGTHS)
        check_within(f"{each.name}: strength", each.strength_low, *STRENGTHS)
    loras, lines = place(wanted, missing)
    return io.NodeOutput(LoraStack((stack or LoraStack()).loras + tuple(loras)), ui={"text": ("\n".join(lines or ["no LoRA"]),)})


def read_lines(text: str) -> list[Wanted]:
    """The files that lines of text name. Raises LoraError: the line, and what was expected."""
    wanted = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        rest, at, side = line.strip().rpartition("@")
        rest, side = (rest, side.strip()) if at and side.strip() in SIDES else (line.strip(), SIDES[0])
        name, colon, strength = rest.rpartition(":")
        try:
            high, low = strengths(strength.strip()) if colon else (1.0, 1.0)
        except RecipeError as cause:
            said = f"line {number}: expected `name : strength` or `name : high;low`, found {line.strip()!r}"
            raise LoraError(f"lora list: {said}; correct it") from cause
        wanted.append(Wanted(paths.lora_path((name if colon else rest).strip()), side, high, low))
    return wanted
