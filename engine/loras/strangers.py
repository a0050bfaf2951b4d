"""Files that call themselves LoRAs but need new modules in the model: recognised as a whole, and refused with the reason.

Their pairs alone were trained to work with those modules, so adding them without is no part of what their maker meant.
"""
from collections.abc import Mapping

from ..bases.prefixes import take_apart
from ..specs import TensorSpec

CONTROL_CHANNELS = 32                              # 16 of the latent, 16 of the control picture (Wan 2.1 T2V control LoRAs)
UNIANIMATE = "UniAnimate file: it adds a pose encoder to the model, which no merge can; use the nodes made for it"
MARKS = (
    ("_loras.", "Stand-In file: it adds a second stream of attention to the model, which no merge can; use the nodes made for it"),
    ("dwpose_embedding", UNIANIMATE),
    ("randomref_embedding_pose", UNIANIMATE),
    ("img_in.", "control LoRA for FLUX, which is another model; choose a LoRA for Wan"),
)
DOWNS = {".lora_A.weight", ".lora_down.weight", ".lora_A", ".lora_A.default.weight"}


def stranger(specs: Mapping[str, TensorSpec], channels: int | None) -> str | None:
    """Why no key of a file can be merged; None for an ordinary LoRA. specs: of the file; channels: the base's, into its patches."""
    for key, spec in specs.items():
        for mark, reason in MARKS:
            if mark in key:
                return reason
        taken = _patch_channels(key, spec)
        if channels is not None and taken == CONTROL_CHANNELS != channels:
            return (f"control LoRA: its patch embedding takes {taken} channels, this model's {channels}; it needs a model made "
                    "wider for it, which no merge can do")
    return None


def patch_channels(specs: Mapping[str, TensorSpec]) -> int | None:
    """Channels into the patch embedding that a LoRA was trained on; None when it leaves that layer alone."""
    return next((found for key, spec in specs.items() if (found := _patch_channels(key, spec))), None)


def _patch_channels(key: str, spec: TensorSpec) -> int | None:
    suffix = next((each for each in DOWNS if key.endswith(each)), None)
    if suffix is None or take_apart(key.removesuffix(suffix)).name not in ("patch_embedding", "patch_embedding.weight"):
        return None
    return spec.shape[1] if len(spec.shape) == 5 else spec.shape[1] // 4 if len(spec.shape) == 2 else None
