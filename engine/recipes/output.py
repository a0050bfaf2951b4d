"""One output of a recipe: a format, or a format for each layer, and how it is made; each field with its check."""
import dataclasses
from typing import Annotated

from ...quant.formats import BLOCK_TYPES, FORMATS, INT8_SCALINGS, QUANTIZED, SEARCHES, Options
from ...quant.gguf.block_type import SETTINGS
from ..errors import RecipeError
from ..precision import GGUF, GGUF_FORMATS, KEEP, KEPT_DTYPES, SOURCE, Forms, container_of
from . import checks
from .checks import wrong

PAIR, SINGLE = ("high_noise", "low_noise"), ("model",)
ROLES = PAIR + SINGLE
ACTIVATIONS = FAST, SIXTEEN = ("fast_uncalibrated", "16-bit")
ROUNDINGS = ("auto", "nearest")
BY_ROLE = ("layers", "full_precision", "input_amax", "imatrix", "imatrix_sha256")
AMAX = checks.number(1e-12, 1e12)                  # of activations; float32 scales of it are normal numbers


def _by_layer(each: checks.Check) -> checks.Check:
    """Role -> layer -> what `each` accepts."""
    def check(value: object, where: str) -> dict:
        if not isinstance(value, dict):
            raise wrong(where, "an object by layer", value)
        return {checks.filled(layer, where): each(found, f"{where}.{layer}") for layer, found in value.items()}
    return checks.mapped(ROLES, check)


@dataclasses.dataclass(frozen=True)
class Output:
    """One format, of FORMATS or of GGUF. `experts` empty in the JSON means all of them; here it always names them.

    activations: of quantized layers without an input scale. plan: title of the precision plan that the next three came from;
    layers: role -> layer -> format, of those that do not get `format`; full_precision: role -> layers multiplied in 16 bit;
    input_amax: role -> layer -> largest activation, margin included. kept_dtype: of weights that are not quantized; fp32_names:
    keys that stay F32 whatever it says. search, int8_scaling: see quant/formats.py. rounding: auto is nearest, but stochastic,
    seeded by the key, where a delta was added to a weight that came from a quantized grid. suffix: tells it from others.
    gguf_setting: how GGUF's encoders search. imatrix: role -> file of importances by input column (imatrix.py), imatrix_sha256:
    what that file has to be. Raises RecipeError where `layers` names a format of another kind of file, or a format at all beside
    one that quantizes nothing.
    """

    format: Annotated[str, checks.choice(*FORMATS, *GGUF_FORMATS)]
    experts: Annotated[tuple[str, ...], checks.listed(checks.choice(*ROLES))] = ()
    activations: Annotated[str, checks.choice(*ACTIVATIONS)] = ACTIVATIONS[0]
    plan: Annotated[str, checks.text] = ""
    layers: Annotated[dict[str, dict[str, str]], _by_layer(checks.choice(*sorted(QUANTIZED), *BLOCK_TYPES, KEEP))] = \
        dataclasses.field(default_factory=dict)
    full_precision: Annotated[dict[str, tuple[str, ...]], checks.mapped(ROLES, checks.listed(checks.filled))] = \
        dataclasses.field(default_factory=dict)
    input_amax: Annotated[dict[str, dict[str, float]], _by_layer(AMAX)] = dataclasses.field(default_factory=dict)
    kept_dtype: Annotated[str, checks.choice(*KEPT_DTYPES)] = SOURCE
    fp32_names: Annotated[tuple[str, ...] | None, checks.optional(checks.listed(checks.filled))] = None
    search: Annotated[str, checks.choice(*SEARCHES)] = SEARCHES[0]
    int8_scaling: Annotated[str, checks.choice(*INT8_SCALINGS)] = INT8_SCALINGS[0]
    rounding: Annotated[str, checks.choice(*ROUNDINGS)] = ROUNDINGS[0]
    suffix: Annotated[str, checks.text] = ""
    gguf_setting: Annotated[str, checks.choice(*SETTINGS)] = SETTINGS[0]
    imatrix: Annotated[dict[str, str], checks.mapped(ROLES, checks.filled)] = dataclasses.field(default_factory=dict)
    imatrix_sha256: Annotated[dict[str, str], checks.mapped(ROLES, checks.filled)] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if self.imatrix and self.gguf_setting == "reference" and self.container == GGUF:
            raise RecipeError("output: gguf_setting: expected best or max beside an imatrix, found reference, which weighs nothing")
        for layers in self.layers.values():
            strange = [layer for layer, name in layers.items() if name != KEEP and container_of(name) != self.container]
            if strange:
                raise RecipeError(f"output: layers: {strange[0]}: expected a format of a {self.container} file, as {self.format} "
                                  f"is, found {layers[strange[0]]}; choose formats of one kind")

        named = {name for layers in self.layers.values() for name in layers.values()} - {KEEP}
        if named and not Forms(self.format).is_quantized:
            raise RecipeError(f"output: layers: expected no formats beside {self.format}, which quantizes nothing, found "
                              f"{min(named)}; choose a quantized format, and keep for the other layers")

    @property
    def container(self) -> str:
        """The kind of the file: safetensors or gguf."""
        return container_of(self.format)

    @property
    def label(self) -> str:
        """What tells it from the other outputs of an expert: format, plan and suffix."""
        return "_".join(dict.fromkeys(part for part in (self.format, self.plan, self.suffix) if part))

    def forms(self, role: str) -> Forms:
        """What each tensor of one expert is stored as."""
        names = None if self.fp32_names is None else frozenset(self.fp32_names)
        return Forms(self.format, self.layers.get(role, {}), frozenset(self.full_precision.get(role, ())), self.kept_dtype, names,
                     Options(self.search, self.int8_scaling, self.gguf_setting))

    def only(self, role: str) -> "Output":
        """The same for one expert alone."""
        mine = {name: {role: value[role]} if role in (value := getattr(self, name)) else {} for name in BY_ROLE}
        return dataclasses.replace(self, experts=(role,), **mine)


def parse_output(found: object, where: str = "output") -> Output:
    """An output in JSON, by itself. Raises RecipeError."""
    return checks.record(Output)(found, where)


def join_outputs(outputs: tuple[Output, ...]) -> tuple[Output, ...]:
    """Outputs of one expert each: those that are made alike become one, with the layers of both. `experts` must be named."""
    found: dict[str, Output] = {}
    for each in outputs:
        alike = repr(dataclasses.replace(each, experts=(), **{name: {} for name in BY_ROLE}))
        twin = found.get(alike, dataclasses.replace(each, experts=()))
        maps = {name: getattr(twin, name) | getattr(each, name) for name in BY_ROLE}
        found[alike] = dataclasses.replace(twin, experts=twin.experts + each.experts, **maps)
    return tuple(found.values())
