"""The node that names one LoRA for both experts; chained, they make a stack."""

from comfy_api.latest import io

from ..engine.bases.roles import partner
from ..engine.errors import RecipeError
from ..engine.loras.lora import open_lora
from ..engine.loras.routing import CHOICES
from ..engine.recipes import scope
from . import paths, sockets
from .handles import Lora, LoraStack
from .lora_files import NO_FILE, by_hand, choose_low, doubts
from .widgets import check_within

OF_PASS = "(of the pass)"
STRENGTHS = (-100.0, 100.0)                        # as in the recipe and in LoraLoader of ComfyUI
ANSWERS = {"auto": None, "yes": True, "no": False}


class Wan22LoraPair(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        loras = paths.loras()
        strength = {"default": 1.0, "min": STRENGTHS[0], "max": STRENGTHS[1], "step": 0.01}
        return io.Schema(
            node_id="Wan22LoraPair",
            display_name="LoRA Pair (Wan 2.2)",
            category="Wan 2.2 Master/2 merge",
            description="One LoRA with its high-noise and low-noise file. Chain several to a stack, in any order. For a model "
                        "that is one file, lora, strength and enabled count.",
            search_aliases=["lora stack", "lora loader", "merge lora", "high low lora", "lightning", "lightx2v", "wan lora"],
            inputs=[
                sockets.LoraStack.Input("stack", optional=True, tooltip="LoRAs from the LoRA Pair before this one."),
                io.Combo.Input(
                    "lora_high", options=[paths.NONE, *loras], default=paths.NONE, display_name="lora_high / lora",
                    tooltip="LoRA for the high-noise expert, or for the model when it is one file."),
                io.Combo.Input(
                    "lora_low", options=[paths.AUTO_PAIR, paths.SAME_FILE, paths.NONE, *loras], default=paths.AUTO_PAIR,
                    tooltip="LoRA for the low-noise expert. (auto pair) swaps high and low in the name; a LoRA that names neither "
                            "goes on both experts. A missing half is an error, never left out in silence."),
                io.Float.Input("strength_high", **strength, display_name="strength_high / strength",
                               tooltip="Strength on the high-noise expert, or on the model when it is one file."),
                io.Float.Input("strength_low", **strength, tooltip="Strength on the low-noise expert."),
                io.Boolean.Input("enabled_high", default=True, display_name="enabled_high / enabled",
                                 tooltip="Off: not on the high-noise expert, or not on the model when it is one file."),
                io.Boolean.Input("enabled_low", default=True, tooltip="Off: not on the low-noise expert."),
                io.Combo.Input(
                    "method", options=[OF_PASS, "auto", "addition", "classic", "adaptive"], default=OF_PASS, advanced=True,
                    tooltip="How this LoRA is merged: as its pass says, or its own way. addition: exactly as trained. adaptive: "
                            "what the base does already is thinned. classic: through the gate of the original Action-Master."),
                io.String.Input(
                    "blocks", default="", advanced=True, optional=True, placeholder="0-8: 0.5, ffn: 0.8",
                    tooltip="Strength of this LoRA by block and kind of layer: ranges such as 0-8, presets structure (0-8), motion "
                            "(9-30), aesthetic (31-39), kinds self_attn, cross_attn, ffn, other."),
                io.Combo.Input(
                    "experts", options=list(CHOICES), default="auto", advanced=True, optional=True,
                    tooltip="Where lora_high goes. auto: as both widgets say. high, low, both: this one file there, whatever its "
                            "name says; lora_low is then left at (auto pair)."),
                io.Combo.Input(
                    "rs_lora", options=list(ANSWERS), default="auto", advanced=True, optional=True,
                    tooltip="Rank-stabilized LoRA: alpha is divided by the root of the rank. auto: as its metadata says; plain "
                            "where it says nothing. A wrong yes makes it several times too strong."),
                io.Combo.Input(
                    "protected", options=list(ANSWERS), default="auto", advanced=True, optional=True,
                    tooltip="Added exactly as it is, outside gates and methods. auto: when it is recognized as a distillation "
                            "LoRA."),
            ],
            outputs=[sockets.LoraStack.Output(display_name="stack", tooltip="All LoRAs so far, for Inject or the next LoRA Pair.")],
            has_intermediate_output=True,
        )

    @classmethod
    def fingerprint_inputs(cls, lora_high, lora_low, **others):
        chosen = [paths.lora_path(name) for name in (lora_high, lora_low) if name not in NO_FILE]
        if lora_low == paths.AUTO_PAIR:
            chosen += [path for path in map(partner, chosen) if path]
        return tuple(paths.signature(path) for path in chosen)

    @classmethod
    def execute(cls, lora_high, lora_low, strength_high, strength_low, enabled_high, enabled_low, method,
                stack=None, blocks="", experts="auto", rs_lora="auto", protected="auto") -> io.NodeOutput:
        check_within("lora pair: strength_high", strength_high, *STRENGTHS)
        check_within("lora pair: strength_low", strength_low, *STRENGTHS)
        high = None if lora_high == paths.NONE else paths.lora_path(lora_high)
        if experts == "auto":
            low = choose_low(high, lora_low, needed=enabled_low)
        else:
            high, low = by_hand(high, lora_low, experts)
        off = (*(["high_noise"] if high and not enabled_high else ()), *(["low_noise"] if low and not enabled_low else ()))
        high, low = high if enabled_high else None, low if enabled_low else None
        asked = None if method == OF_PASS else method
        unsure = doubts(high, low) if experts == "auto" else ()
        lora = Lora(high, low, strength_high, strength_low, asked, off=off, doubts=unsure, scope=read_scope(blocks),
                    rs_lora=ANSWERS[rs_lora], protected=ANSWERS[protected])
        loras = (stack or LoraStack()).loras + ((lora,) if high or low else ())
        return io.NodeOutput(LoraStack(loras), ui={"text": (describe(lora, lora_low, experts),)})


def read_scope(blocks: str) -> tuple[tuple[str, float], ...]:
    """Factors by block and kind from the widget. Raises RecipeError when they make no sense."""
    try:
        return tuple(scope.parse(blocks).items())
    except ValueError as cause:
        raise RecipeError(f"lora pair: blocks: {cause}; correct it") from cause


def describe(lora: Lora, lora_low: str, experts: str) -> str:
    """What was chosen, a line per file, with its rank."""
    if not (lora.high or lora.low):
        return "no LoRA is chosen or enabled; the stack passes unchanged"
    lines = [_line(path) for path in dict.fromkeys((lora.high, lora.low)) if path]
    if experts != "auto":
        lines.append(f"on {'both experts' if experts == 'both' else f'the {experts}-noise expert'}: your choice")
    elif lora_low == paths.AUTO_PAIR and lora.high == lora.low:
        lines.append("on every expert: it holds both, or speaks of none")
    elif lora_low == paths.AUTO_PAIR and len(lines) == 2:
        lines[1] = f"paired with {lines[1]}"
    return "\n".join([*lines, *lora.doubts])


def _line(path: str) -> str:
    with open_lora(path) as lora:
        kind = f", distillation LoRA ({lora.is_distillation})" if lora.is_distillation else ""
        return f"{lora.name}: rank {lora.rank}{kind}"
