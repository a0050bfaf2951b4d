"""The widgets of Inject beyond the method: how a pass's LoRAs become one change, options of the whole merge, adaptive's constants.

All are appended behind the first release's, because workflows store widgets by position, and optional, so that prompts saved by
it still run.
"""
from comfy_api.latest import io

from ..engine.recipes.recipe_parts import COMBINES
from .inject_rules import ADAPTIVE, CONSTANTS, RULES
from .recipe_handle import OPTIONS


def rule_inputs() -> list[io.Input]:
    """How the LoRAs of this pass become one change, and where it acts."""
    share = {"min": 0.0, "max": 1.0, "step": 0.01, "advanced": True, "optional": True}
    more = {"advanced": True, "optional": True}
    return [
        io.Combo.Input("combine", options=list(COMBINES), default=RULES["combine"], **more,
                       tooltip="How the changes of this pass's LoRAs become one. sum: added. ties: trimmed to density, then only "
                               "those of the stronger sign. dare_ties: the same with a seeded random thinning. breadcrumbs: "
                               "without the smallest and the very largest. slerp: between exactly two. orthogonal: without what "
                               "they share. Distillation LoRAs are always added as they are."),
        io.Float.Input("density", default=RULES["density"], **share,
                       tooltip="What ties, dare_ties and breadcrumbs keep of each LoRA's change."),
        io.Float.Input("gamma", default=RULES["gamma"], **share, tooltip="Share of the largest changes that breadcrumbs drops."),
        io.Float.Input("slerp_t", default=RULES["slerp_t"], **share, tooltip="slerp: from the first LoRA (0) to the second (1)."),
        io.Int.Input("drop_seed", default=RULES["drop_seed"], min=0, max=2**53 - 1, **more,
                     tooltip="Seed of random thinning; the same seed gives the same file."),
        io.Float.Input("dense_density", default=RULES["dense_density"], **share,
                       tooltip="What injection keeps of changes that are no product of two factors (LoHa, DoRA, full differences); "
                               "1: all of it."),
        io.Combo.Input("dense_mode", options=["magnitude", "dare"], default=RULES["dense_mode"], **more,
                       tooltip="magnitude: the largest stay. dare: a seeded random choice stays, enlarged to make up for it."),
        io.String.Input("blocks", default=RULES["blocks"], **more, placeholder="0-8: 0.5, ffn: 0.8",
                        tooltip="Strength by block and kind of layer: ranges such as 0-8, presets structure (0-8), motion (9-30), "
                                "aesthetic (31-39), kinds self_attn, cross_attn, ffn, other. What is not named keeps 1."),
    ]


def option_inputs() -> list[io.Input]:
    """Options of the whole merge; those of a chain of Inject nodes must agree."""
    more = {"advanced": True, "optional": True}
    return [
        io.Combo.Input("compat", options=["correct", "comfyui"], default=OPTIONS["compat"], **more,
                       tooltip="comfyui: compute every LoRA as ComfyUI 0.33 does, also where that differs from its paper (DoRA, "
                               "OFT, several spellings of one layer), to get an old merge again."),
        io.Boolean.Input("normalize", default=OPTIONS["normalize"], **more,
                         tooltip="Give every weight matrix the norm of its base back."),
        io.Boolean.Input("strict", default=OPTIONS["strict"], **more,
                         tooltip="Fail when more than strict_share of a LoRA cannot be applied to this model."),
        io.Float.Input("strict_share", default=OPTIONS["strict_share"], min=0.0, max=1.0, step=0.001, **more,
                       tooltip="For strict: the share of a LoRA's energy that may be lost."),
        io.Boolean.Input("allow_twice", default=OPTIONS["allow_twice"], **more,
                         tooltip="Let a LoRA in that is in the base already, or that is listed twice."),
    ]


def adaptive_inputs() -> list[io.Input]:
    """Constants of adaptive injection."""
    return [io.Float.Input(ADAPTIVE + name, default=value, min=0.0, max=100.0, step=0.01, advanced=True, optional=True,
                           tooltip=f"Of adaptive: {what}") for name, (value, what) in CONSTANTS.items()]
