"""What a person asks of a precision plan, as JSON: one source of formats, then what changes it. build.py makes the plan of it.

    {"version": 1, "gguf": {"both": "Wan2.2-Q5_K_M.gguf"}, "gguf_nvfp4_max_bitdepth": 5, "use_fp8": true,
     "keep_edge_blocks": true, "full_precision_switches": ["cross_attn_qkvo"]}
Files are given by role, or under "both" for every expert that has none of its own.
"""
import dataclasses
from collections.abc import Mapping
from typing import Annotated

from ..gguf_mix import PLAIN
from ..precision import GGUF, GGUF_FORMATS, KEPT_DTYPES, SAFETENSORS, container_of
from ..recipes import checks
from ..recipes.output import ROLES
from .cards import CARDS
from .layer_lists import SWITCHES
from .plan import KEEP, VERSION, one_format
from .presets import HARDWARE, NAMES
from .sensitivity import ACTIONS

BOTH = "both"
SOURCES = ("format", "preset", "gguf", "plan", "budget_gb")
MIXED = tuple(name for name in GGUF_FORMATS if name not in PLAIN)
_files = checks.mapped((BOTH, *ROLES), checks.filled)
_patterns = checks.listed(checks.filled)


def one_source(value: object, where: str) -> str:
    """A check: a format for all layers, or a mix of GGUF types."""
    return value if value in MIXED else one_format(value, where)


@dataclasses.dataclass(frozen=True)
class Include:
    """Layers whose name `pattern` is found in get `format`, "keep" included."""

    pattern: Annotated[str, checks.filled]
    format: Annotated[str, one_format]


@dataclasses.dataclass(frozen=True)
class PlanRequest:
    """Exactly one of format (for all block linears), preset (for `hardware`), gguf and plan (paths of files) and budget_gb (of one
    expert's file) is the source.

    The others change what it says, in the order of the fields; None and empty ones change nothing. A budget is solved over the
    layers that they leave alone, with the formats that `card` multiplies natively, at least `minimum_fast` of the multiply-adds
    below 16 bit. full_precision_layers: lines of a list, for every expert. promote_below: least effect of the LoRAs over a layer's
    rounding noise, None: no layer is raised for it. kept_dtype: None is what a plan file says, else source.

    full_precision_above: quantized layers whose output error with inputs rounded, by a calibration, is more than this many times
    that without are multiplied in 16 bit; None: none, as that is slower, and a person who chose speed has to say so.

    container: the kind of file. For a GGUF, formats are its types, `format` a mix of them too, a budget chooses among them whatever
    the card, a GGUF map is copied as it is, and full precision changes nothing, as every layer is multiplied in 16 bit. Raises
    RecipeError when there is no source, or more than one, a sensitivity file without a threshold, and for what such a file has not.
    """

    format: Annotated[str | None, checks.optional(one_source)] = None
    preset: Annotated[str | None, checks.optional(checks.choice(*NAMES))] = None
    hardware: Annotated[str, checks.choice(*HARDWARE)] = "any"
    gguf: Annotated[dict[str, str], _files] = dataclasses.field(default_factory=dict)
    gguf_nvfp4_max_bitdepth: Annotated[int, checks.whole(1, 16)] = 4
    use_fp8: Annotated[bool, checks.flag] = False
    plan: Annotated[str | None, checks.optional(checks.filled)] = None
    budget_gb: Annotated[float | None, checks.optional(checks.number(0.0, 1e3))] = None
    card: Annotated[str, checks.choice(*CARDS)] = "cpu"
    minimum_fast: Annotated[float, checks.number(0.0, 1.0)] = 0.0
    keep_edge_blocks: Annotated[bool, checks.flag] = False
    min_ffn_fp8: Annotated[bool, checks.flag] = False
    min_ffn2_16bit: Annotated[bool, checks.flag] = False
    sensitivity: Annotated[dict[str, str], _files] = dataclasses.field(default_factory=dict)
    sensitivity_threshold: Annotated[float | None, checks.optional(checks.number(0.0, 1e6))] = None
    sensitivity_action: Annotated[str, checks.choice(*ACTIONS)] = KEEP
    exclude: Annotated[tuple[str, ...], _patterns] = ()
    include: Annotated[tuple[Include, ...], checks.listed(checks.record(Include))] = ()
    full_precision_lists: Annotated[dict[str, str], _files] = dataclasses.field(default_factory=dict)
    full_precision_layers: Annotated[tuple[str, ...], checks.listed(checks.filled)] = ()
    full_precision_switches: Annotated[tuple[str, ...], checks.listed(checks.choice(*SWITCHES))] = ()
    promote_below: Annotated[float | None, checks.optional(checks.number(0.0, 1e6))] = None
    kept_dtype: Annotated[str | None, checks.optional(checks.choice(*KEPT_DTYPES))] = None
    full_precision_above: Annotated[float | None, checks.optional(checks.number(1.0, 1e3))] = None
    container: Annotated[str, checks.choice(SAFETENSORS, GGUF)] = SAFETENSORS

    def __post_init__(self):
        given = [name for name in SOURCES if getattr(self, name)]
        if len(given) != 1:
            raise checks.wrong("plan request", f"exactly one source of {', '.join(SOURCES)}", given, "give one of them")
        if self.sensitivity and self.sensitivity_threshold is None:
            raise checks.wrong("plan request.sensitivity_threshold", "a number beside the sensitivity files", None, "give one")
        self._check_container()

    def _check_container(self) -> None:
        """Raise RecipeError for what a file of this kind cannot be asked for."""
        for where, name in (("format", self.format), *(("include", each.format) for each in self.include)):
            if name not in (None, KEEP) and container_of(name) != self.container:
                raise checks.wrong(f"plan request.{where}", f"a format of a {self.container} file", name,
                                   f"choose another, or {container_of(name)} as container")
        if self.container == GGUF and self.preset:
            raise checks.wrong("plan request.preset", "none for a GGUF, as presets choose among ComfyUI's own formats", self.preset,
                               "choose a mix as Q4_K_M, a size budget, or a GGUF as map")
        if self.container == GGUF and self.minimum_fast:
            raise checks.wrong("plan request.minimum_fast", "0 for a GGUF, whose layers are all multiplied in 16 bit",
                               self.minimum_fast, "set it to 0")

    @property
    def full_precision(self) -> tuple[str, ...]:
        """Names of the fields that ask for products in 16 bit."""
        named = ("full_precision_lists", "full_precision_layers", "full_precision_switches")
        return (*(name for name in named if getattr(self, name)),
                *(["full_precision_above"] if self.full_precision_above is not None else []),
                *(["sensitivity_action"] if self.sensitivity and self.sensitivity_action != KEEP else []))

    def to_json(self) -> dict:
        """Plain objects, lists and texts, that `parse` reads back."""
        return {"version": VERSION, **dataclasses.asdict(self)}


def parse(found: object, where: str = "plan request") -> PlanRequest:
    """The request in parsed JSON. Raises RecipeError: JSON path, what was expected, what came, what to do."""
    if not isinstance(found, dict):
        raise checks.wrong(where, "a request for a plan as a JSON object", found)
    checks.choice(VERSION)(found.get("version"), f"{where}.version")
    return checks.record(PlanRequest)({name: each for name, each in found.items() if name != "version"}, where)


def file_for(files: Mapping[str, str], role: str) -> str | None:
    """The file of an expert: its own, else the one for both, else None."""
    return files.get(role, files.get(BOTH))
