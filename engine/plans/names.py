"""Names of layers as other people's files spell them, matched to a model's layers; what matches nothing is told, never dropped.

Tolerated: `.weight` at the end, `model.diffusion_model.` at the start (ComfyUI's checkpoints), and two names pasted into one line,
as in each of the original converter's three lists: `blocks.5.self_attn.oblocks.0.cross_attn.k`. That program found no layer of that
name and said nothing, so blocks.5.self_attn.o lost its setting.
"""
import difflib
import re
from collections.abc import Iterable, Mapping

from ..precision import is_block_linear
from ..specs import TensorSpec

PREFIX = "model.diffusion_model."
BETWEEN_FUSED = re.compile(r"(?<=.)(?<!vace_)(?=(?:vace_)?blocks\.\d)")
SHOWN = 5  # names in one notice


def bare(name: str) -> str:
    """A key or layer without the prefix of a checkpoint."""
    return name.removeprefix(PREFIX)


def some(names: Iterable[str]) -> str:
    """The first few of some names, and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:SHOWN]) + (f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else "")


def sort_out(names: Iterable[str], model: Mapping[str, TensorSpec], where: str) -> tuple[list[str], list[str]]:
    """The block linears among `names`, each once, in their order; and a notice for each kind of name that is none.

    model: native key -> spec. where: the file the names are from, for the notices.
    """
    given = list(dict.fromkeys(bare(name.strip()).removesuffix(".weight") for name in names))
    fused = [name for name in given if f"{name}.weight" not in model and len(BETWEEN_FUSED.split(name)) > 1]
    single = list(dict.fromkeys(part for name in given for part in (BETWEEN_FUSED.split(name) if name in fused else [name])))
    layers, norms, others, strangers = [], [], [], []
    for name in single:
        spec = model.get(f"{name}.weight")
        if spec is not None and is_block_linear(f"{name}.weight", spec):
            layers.append(name)
        elif spec is None and name not in model:
            strangers.append(name)
        else:
            (norms if "norm" in name else others).append(name)
    return layers, [f"{where}: {len(listed)} {what}: {some(listed)}" for listed, what in (
        (fused, "lines hold two names pasted together, taken as both"),
        (norms, "names are norms, which are never quantized"),
        (others, "names are of tensors outside the linears of the blocks, which are never quantized"),
        ([_guess(name, model) for name in strangers[:SHOWN]] + strangers[SHOWN:], "names are not in this model"),
    ) if listed]


def _guess(name: str, model: Mapping[str, TensorSpec]) -> str:
    near = difflib.get_close_matches(f"{name}.weight", [key for key in model if key.endswith(".weight")], 1, 0.85)
    return f"{name} (did you mean {near[0].removesuffix('.weight')}?)" if near else name
