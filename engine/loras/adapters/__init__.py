"""The kinds of adapter a LoRA file can hold: which suffixes they are spelled with, and what the parts of a module become.

One module of this package per kind; each lays its own parts on the base (`build`), and what it makes follows modules.Module.
"""
import math
from typing import TYPE_CHECKING

from ..modules import Module, Refused
from . import direct, glora, ia3, loha, lokr, oft, peft_oft
from . import lora as pairs
from .energy import energy
from .layer import Layer, Result
from .spelling import GLORA, LOHA, LOKR, MAGNITUDES, PAIR_PARTS, SUFFIXES

if TYPE_CHECKING:
    from ..dialects import Index
    from ..lora import LoraFile

__all__ = ["SUFFIXES", "build", "energy"]

KINDS = (direct, pairs, loha, lokr, oft, peft_oft, glora, ia3)
PRODUCTS = (*(set(pair) for pair in PAIR_PARTS.values()), set(LOHA), set(LOKR))
MAGNITUDE_KINDS = {part for product in PRODUCTS for part in product} | {"mid", *MAGNITUDES}
ALPHA_KINDS = MAGNITUDE_KINDS | set(GLORA) | {"oft_blocks", "rescale"}
NUMBERS = ("alpha", "on_input", "reshape_weight")  # stored as integers by some trainers


def build(lora: "LoraFile", layer: str, parts: dict[str, str], index: "Index", *, rs_lora: bool | None = None
          ) -> list[tuple[str, Module] | Refused]:
    """All modules that the parts of ONE module name make of native layer `layer`: (key of the base, module), or refusals.

    parts: part (a value of SUFFIXES) -> key of the file. Every key ends in a module or in a refusal. Reads only alphas and flags.
    rs_lora: whether products are scaled by alpha / sqrt(rank); None: the file's metadata decides. Raises LoraError when an alpha is
    no number.
    """
    kept, results = dict(parts), []
    for refuses in (_not_floating, _reshaped, _several_alphas, _ambiguous):
        refused = refuses(Layer(lora, index, layer, kept, rs_lora))
        results += refused
        kept = {part: key for part, key in kept.items() if key not in {one.key for one in refused}}
    whole = Layer(lora, index, layer, kept, rs_lora)
    for kind in KINDS:
        results += kind.build(whole)
    return results + _left_over(parts, results)


def _not_floating(layer: Layer) -> list[Result]:
    dtypes = {part: layer.lora.header.entries[key].spec.dtype for part, key in layer.parts.items()}
    return [Refused(layer.parts[part], f"expected floating point, found {dtype}")
            for part, dtype in dtypes.items() if part not in NUMBERS and not dtype.is_floating_point]


def _reshaped(layer: Layer) -> list[Result]:
    """A module that widens its layer first: what it was trained on is another model."""
    if "reshape_weight" not in layer.parts:
        return []
    wish = tuple(int(length) for length in layer.lora.read(layer.parts["reshape_weight"]).flatten().tolist())
    found = "no weight" if layer.weight is None else layer.target(layer.weight)
    return layer.refuse(layer.parts, f"reshape_weight asks for a layer of shape {wish}, found {found}; no layer is widened")


def _several_alphas(layer: Layer) -> list[Result]:
    if "alpha" not in layer.parts or math.prod(layer.shape("alpha")) == 1:
        return []
    reason = f"alpha has shape {layer.shape('alpha')}, expected one number"
    return layer.refuse((*ALPHA_KINDS & layer.parts.keys(), "alpha"), reason)


def _ambiguous(layer: Layer) -> list[Result]:
    """A magnitude beside two products: which of them moves the direction cannot be told."""
    products = sum(bool(product & layer.parts.keys()) for product in PRODUCTS)
    if products < 2 or not MAGNITUDES.keys() & layer.parts.keys():
        return []
    reason = "DoRA's magnitude beside two products; which of them it belongs to cannot be told"
    return layer.refuse(MAGNITUDE_KINDS & layer.parts.keys(), reason)


def _left_over(parts: dict[str, str], results: list[Result]) -> list[Result]:
    """Alphas and magnitudes that nothing used, with the reason of what they belong to."""
    ended = {key for one in results for key in ((one.key,) if isinstance(one, Refused) else one[1].keys)}
    reason = next((one.reason for one in reversed(results) if isinstance(one, Refused)), None)
    words = {"alpha": "alpha without factors", **dict.fromkeys(MAGNITUDES, "DoRA's magnitude without factors")}
    return [Refused(key, reason or words.get(part, "not used by any adapter")) for part, key in parts.items() if key not in ended]
