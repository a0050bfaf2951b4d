"""What the user asked for, as JSON: version 1 of the recipe, its parts and what they mean together.

recipe.schema.json says the same for editors and other programs. Later versions only add fields; a field that this
version does not know is an error, because leaving it out would merge something else than was asked.
"""
import dataclasses
import os
from pathlib import Path
from typing import Annotated, Any

from .. import strict_json
from ..errors import RecipeError
from . import checks
from .checks import wrong
from .recipe_parts import PAIR, ROLES, SHARE, SINGLE, LoraEntry, Mix, Output, Pass, Save

__all__ = ["PAIR", "ROLES", "SINGLE", "LoraEntry", "Mix", "Output", "Pass", "Recipe", "Save", "load", "parse"]

LARGEST = 8 << 20  # bytes of a recipe file: thousands of LoRAs
SECOND = {"weighted_sum": 1, "slerp": 1, "add_difference": 2, "ties": 2, "dare": 2}  # checkpoints a mix takes beside the base


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The whole wish. `experts`: role -> path of a model; the pair, one half of it, or "model" alone.

    compat: `comfyui` computes LoRAs as ComfyUI 0.33 does, where that differs from what their papers say. normalize: each 2-D
    weight gets its base's norm back. strict: fail when more than strict_share of a LoRA's energy cannot be applied.
    allow_twice: let a LoRA in that is in the base already, or listed twice.
    """

    version: Annotated[int, checks.choice(1)]
    title: Annotated[str, checks.filled]
    experts: Annotated[dict[str, str], checks.mapped(ROLES, checks.filled)]
    title_version: Annotated[str, checks.text] = ""
    date: Annotated[str | None, checks.optional(checks.day)] = None
    allow_quantized_source: Annotated[bool, checks.flag] = False
    mix: Annotated[Mix | None, checks.optional(checks.record(Mix))] = None
    passes: Annotated[tuple[Pass, ...], checks.listed(checks.record(Pass))] = ()
    compat: Annotated[str, checks.choice("correct", "comfyui")] = "correct"
    normalize: Annotated[bool, checks.flag] = False
    strict: Annotated[bool, checks.flag] = False
    strict_share: Annotated[float, SHARE] = 0.01
    allow_twice: Annotated[bool, checks.flag] = False
    outputs: Annotated[tuple[Output, ...], checks.listed(checks.record(Output))] = ()
    save: Annotated[Save, checks.record(Save)] = dataclasses.field(default_factory=Save)
    device: Annotated[str, checks.filled] = "auto"

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(self.experts)

    def to_json(self) -> dict:
        """The recipe as `parse` takes it: names sorted, every default spelled out, what is None left out."""
        return plain(dataclasses.asdict(self))


def plain(value: Any) -> Any:
    """Objects, lists, texts and numbers of JSON: names sorted, what is None left out."""
    if isinstance(value, dict):
        return {name: plain(value[name]) for name in sorted(value) if value[name] is not None}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def parse(found: object) -> Recipe:
    """The recipe in a JSON object. Raises RecipeError: JSON path, what was expected, what came, what to do."""
    if isinstance(found, dict) and found.get("version") not in (1, None):
        raise wrong("version", "1", found["version"], "update the pack: a newer version wrote this recipe")
    recipe = checks.record(Recipe)(found, "")
    if not recipe.roles or (recipe.roles != SINGLE and "model" in recipe.roles):
        raise wrong("experts", "high_noise and low_noise, one of them, or model alone", recipe.roles)
    for number, each in enumerate(recipe.passes):
        for place, lora in enumerate(each.loras):
            where = f"passes[{number}].loras[{place}]"
            if not lora.files or not set(lora.files) <= set(recipe.roles):
                raise wrong(f"{where}.files", f"a file for {' or '.join(recipe.roles)}", tuple(lora.files))
            if not set(lora.strength) <= set(lora.files):
                raise wrong(f"{where}.strength", f"only {' and '.join(lora.files)}, which have a file", tuple(lora.strength))
    _check_mix(recipe)
    return dataclasses.replace(recipe, outputs=_outputs(recipe))


def _check_mix(recipe: Recipe) -> None:
    """Raise RecipeError unless the mix names as many checkpoints as its method takes, for experts of the recipe."""
    if recipe.mix is None:
        return
    if not recipe.mix.files or not set(recipe.mix.files) <= set(recipe.roles):
        raise wrong("mix.files", f"checkpoints for {' or '.join(recipe.roles)}", tuple(recipe.mix.files))
    if not set(recipe.mix.strength) <= set(recipe.mix.files):
        raise wrong("mix.strength", f"only {' and '.join(recipe.mix.files)}, which have files", tuple(recipe.mix.strength))
    for role, files in recipe.mix.files.items():
        if len(files) != SECOND[recipe.mix.method]:
            raise wrong(f"mix.files.{role}", f"{SECOND[recipe.mix.method]} files for {recipe.mix.method}", files)


def _outputs(recipe: Recipe) -> tuple[Output, ...]:
    """The outputs with their experts named and in order. Raises RecipeError when one file is asked for twice."""
    named, seen = [], set()
    for number, output in enumerate(recipe.outputs):
        experts = tuple(role for role in recipe.roles if role in (output.experts or recipe.roles))
        if not set(output.experts) <= set(recipe.roles):
            raise wrong(f"outputs[{number}].experts", f"{' or '.join(recipe.roles)}", output.experts)
        if not set(output.imatrix) <= set(experts):
            raise wrong(f"outputs[{number}].imatrix", f"files for {' or '.join(experts)}", tuple(output.imatrix))
        for role in experts:
            if (output.label, role) in seen:
                raise wrong(f"outputs[{number}]", "each format once per expert", f"{output.label} of {role} twice",
                            "give one of them a suffix")
            seen.add((output.label, role))
        named.append(dataclasses.replace(output, experts=experts))
    return tuple(named)


def load(path: str | os.PathLike) -> Recipe:
    """The recipe in a file; relative paths in it count from the file's folder, `~` is the home. Raises RecipeError."""
    try:
        with open(path, "rb") as file:
            body = file.read(LARGEST + 1)
    except OSError as cause:
        raise RecipeError(f"{path}: cannot be opened: {cause.strerror}, check the path") from cause
    if len(body) > LARGEST:
        raise RecipeError(f"{path}: expected a recipe of at most {LARGEST} bytes, found more, this is another file")
    try:
        recipe = parse(strict_json.parse(body.removeprefix(b"\xef\xbb\xbf")))  # Windows editors put a byte order mark first
    except ValueError as cause:
        raise RecipeError(f"{path}: expected a recipe in JSON, found text that is none ({cause}), correct it") from cause
    except RecipeError as cause:
        raise RecipeError(f"{path}: {cause}") from cause
    return _anchored(recipe, Path(path).absolute().parent)


def _anchored(recipe: Recipe, folder: Path) -> Recipe:
    def absolute(files: dict[str, str]) -> dict[str, str]:
        return {role: os.path.normpath(folder / Path(path).expanduser()) for role, path in files.items()}

    passes = [dataclasses.replace(each, loras=tuple(dataclasses.replace(lora, files=absolute(lora.files)) for lora in each.loras))
              for each in recipe.passes]
    save = dataclasses.replace(recipe.save, **absolute({"folder": recipe.save.folder}))
    mix = recipe.mix and dataclasses.replace(recipe.mix, files={
        role: tuple(absolute({"": path})[""] for path in files) for role, files in recipe.mix.files.items()})
    outputs = tuple(dataclasses.replace(each, imatrix=absolute(each.imatrix)) for each in recipe.outputs)
    return dataclasses.replace(recipe, experts=absolute(recipe.experts), mix=mix, passes=tuple(passes), outputs=outputs, save=save)
