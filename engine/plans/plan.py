"""The precision plan: a map layer -> format with the reason of each choice, and its JSON form, version 1.

    {"version": 1, "title": "balanced", "kept_dtype": "source", "fp32_names": null, "notices": [],
     "experts": {"high_noise": {"blocks.3.ffn.2": {"format": "mxfp8", "full_precision": false, "reason": "ffn.2 ..."}}}}
A layer is the key of a block linear without `.weight`; every block linear of the model is named, so that a plan read back later
says the same, whatever preset or file it came from. All other tensors stay as `kept_dtype` says.
"""
import dataclasses
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated

from ...quant.formats import BLOCK_TYPES, FORMATS, QUANTIZED
from .. import strict_json
from ..errors import RecipeError
from ..precision import GGUF, KEEP, KEPT_DTYPES, SAFETENSORS, SOURCE, container_of, is_block_linear
from ..recipes import checks
from ..recipes.output import ROLES
from ..specs import TensorSpec
from ..system import write_json

VERSION = 1
LARGEST = 8_000_000  # bytes; the plan of two 14B experts has 800 layers of about 200 bytes each


def one_format(value: object, where: str) -> str:
    """A check: the name of a quantized format, one of ComfyUI's or a type of GGUF, or KEEP."""
    return checks.choice(*(name for name in FORMATS if name in QUANTIZED), *BLOCK_TYPES, KEEP)(value, where)


def container_among(names: Iterable[str]) -> str:
    """The kind of file that some formats are of; SAFETENSORS where none is quantized."""
    return GGUF if any(name != KEEP and container_of(name) == GGUF for name in names) else SAFETENSORS


@dataclasses.dataclass(frozen=True)
class Choice:
    """What one layer becomes. format: a quantized name of FORMATS, a type of GGUF, or KEEP (16 or 32 bit, as kept_dtype says).

    full_precision: the stored weight is dequantized and multiplied in 16 bit (ComfyUI's full_precision_matrix_mult), so the
    input is never quantized. reason: in words, for the user.
    """

    format: Annotated[str, one_format]
    full_precision: Annotated[bool, checks.flag] = False
    reason: Annotated[str, checks.text] = ""


def _layers(value: object, where: str) -> dict[str, Choice]:
    """An object layer -> choice."""
    if not isinstance(value, dict):
        raise checks.wrong(where, "an object of choices by layer", value)
    choice = checks.record(Choice)
    return {checks.filled(layer, where): choice(each, f"{where}.{layer}") for layer, each in value.items()}


@dataclasses.dataclass(frozen=True)
class PrecisionPlan:
    """Formats of all block linears of one or two experts, all of one kind of file. title: a short word for file names.

    experts: role -> layer -> choice. kept_dtype: what the other weights are stored in: source, bf16, fp16. fp32_names: keys that
    a GGUF map keeps in F32, which concerns F32 source tensors alone; None: no such map. notices: what the user is to know.
    Raises RecipeError where formats of both kinds of files stand side by side.
    """

    title: Annotated[str, checks.filled]
    experts: Annotated[dict[str, dict[str, Choice]], checks.mapped(ROLES, _layers)]
    kept_dtype: Annotated[str, checks.choice(*KEPT_DTYPES)] = SOURCE
    fp32_names: Annotated[tuple[str, ...] | None, checks.optional(checks.listed(checks.filled))] = None
    notices: Annotated[tuple[str, ...], checks.listed(checks.text)] = ()

    def __post_init__(self):
        for role, choices in self.experts.items():
            strange = [layer for layer, each in choices.items()
                       if each.format != KEEP and container_of(each.format) != self.container]
            if strange:
                raise RecipeError(f"plan {self.title}: {role}: {strange[0]}: expected a type of GGUF, as other layers have, found "
                                  f"{choices[strange[0]].format}; choose formats of one kind of file")

    @property
    def container(self) -> str:
        """The kind of file, SAFETENSORS or GGUF; SAFETENSORS where nothing is quantized."""
        return container_among(each.format for choices in self.experts.values() for each in choices.values())

    def to_json(self) -> dict:
        """Plain objects, lists and texts, that `from_json` reads back."""
        return {"version": VERSION, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, found: object, where: str = "plan") -> "PrecisionPlan":
        """The plan in parsed JSON. Raises RecipeError: JSON path, what was expected, what came, what to do."""
        if not isinstance(found, dict):
            raise checks.wrong(where, "a precision plan as a JSON object", found)
        checks.choice(VERSION)(found.get("version"), f"{where}.version")
        return checks.record(cls)({name: each for name, each in found.items() if name != "version"}, where)

    def save(self, path: str | os.PathLike) -> None:
        """Write the plan as JSON, whole or not at all. Raises PlanError naming the file."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "PrecisionPlan":
        """The plan in a file. Raises RecipeError, naming the file."""
        try:
            return cls.from_json(read_object(path, "a precision plan"))
        except RecipeError as cause:
            raise cause if str(cause).startswith(os.fspath(path)) else RecipeError(f"{path}: {cause}") from cause


def read_text(path: str | os.PathLike, expected: str) -> str:
    """A small UTF-8 file as text, without a byte order mark. expected: what it should be. Raises RecipeError naming the file."""
    try:
        with open(path, "rb") as file:
            body = file.read(LARGEST + 1)
        if len(body) > LARGEST:
            raise RecipeError(f"{path}: expected {expected} of at most {LARGEST} bytes, found more, this is another file")
        return body.decode("utf-8-sig")
    except OSError as cause:
        raise RecipeError(f"{path}: expected {expected}, found no file to read: {cause.strerror}, check the path") from cause
    except UnicodeDecodeError as cause:
        raise RecipeError(f"{path}: expected {expected}, found bytes that are no UTF-8 text, this is another file") from cause


def read_object(path: str | os.PathLike, expected: str) -> dict:
    """The JSON object in a file; NaN and infinities are let through as floats. Raises RecipeError naming the file."""
    try:
        return strict_json.parse(read_text(path, expected).encode("utf-8"))
    except ValueError as cause:
        raise RecipeError(f"{path}: expected {expected} in JSON, found text that is none ({cause}), correct it") from cause


def counts(plan: PrecisionPlan, role: str) -> dict[str, int]:
    """Format -> number of layers of one expert, the most frequent first. Raises KeyError for a role the plan has not."""
    return dict(Counter(choice.format for choice in plan.experts[role].values()).most_common())


def block_linears(model: Mapping[str, TensorSpec]) -> dict[str, TensorSpec]:
    """Layer -> spec of everything in a model that may be quantized, in the model's order."""
    return {key.removesuffix(".weight"): spec for key, spec in model.items() if is_block_linear(key, spec)}
