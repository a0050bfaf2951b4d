"""What was calibrated: a base, the recipe merged into it, and in which format it ran. The key of a session, whatever the file.

    recipe = SHA-256 of the passes as merged: hashes of LoRAs, strengths, resolved methods, their constants; no name, no path
    base   = what tells the base apart, as words: sample:<SHA-256 of a few rows> header:<of headers and sizes> sha256:<of the file>
             name:<of the file>

A file that this pack saved embeds its recipe and its base's name, and its sha256 where it was known, so that a merge and an FP8
or Q8_0 file of it are the same subject. Bases are compared by the surest word that both have: sha256 and sample tell for sure; a
header is the same for any two models of one layout, as the two experts are; a name says only that it was called so. A file made
from a merged file without any LoRA names that file as its base: so `itself` is kept too, and either way of telling it may match.
"""
import hashlib
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from .. import strict_json
from ..bases.source import open_source
from ..bases.variant import detect
from ..errors import HeaderError, RecipeError
from ..precision import is_block_linear
from ..recipes import embedded
from ..recipes.recipe import Recipe
from ..specs import NAMES
from .compare import compare
from .recipe_digest import digest, loras_of
from .subject_record import BARE, Subject

__all__ = ["Subject", "compare", "header_digest", "sample_digest", "subject_of", "subject_of_file"]

FLOATS = {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F64": "fp64"}
WORDS = ("sample", "header", "sha256")             # of an embedded base, beside its name, where the writer knew them
SAMPLED = 16                                       # block linears of which a sample has the first row: 100 kB are read


def subject_of(expert, recipe: Recipe, sha256: Mapping[str, str] | None = None, *, stored_as: str | None = None) -> Subject:
    """Of an expert of a plan.

    expert: has `role`, `source` (bases.source.Source), `variant` (task, size) and `ledgers` (one row for each LoRA with a file for
    this role, in the recipe's order, with its "sha256"), as jobs.experts.ExpertPlan. recipe: the plan's, resolved. sha256: path ->
    hash, of a base where it is known. stored_as: the format that runs; None: that of the source.
    """
    hashes = [row["sha256"] for row in expert.ledgers]
    source = getattr(expert.source, "base", expert.source)   # of a mix, what is mixed into
    words = _words(source, sha256 or {})
    merged = digest(recipe, expert.role, hashes)
    format_ = stored_as or _stored_as(source)
    if merged == BARE:
        return replace(_of_source(source, words), task=expert.variant.task, size=expert.variant.size, stored_as=format_)
    return Subject(words, _name(source), loras_of(recipe, expert.role, hashes), merged, expert.variant.task,
                   expert.variant.size, format_)


def subject_of_file(path: str | os.PathLike, sha256: Mapping[str, str] | None = None) -> Subject:
    """Of a model's file, folder or index, by its headers and a few rows; any format that this pack reads as a base.

    A file of ours gives the recipe that is embedded, and of its base the words that are: `name` alone unless its hash was known.
    Another file, or one saved without metadata, is a base without LoRAs. sha256: path -> hash where known.
    Raises HeaderError, SourceError.
    """
    with open_source(path, allow_lossy=True) as source:
        variant = detect(source)
        found = _of_source(source, _words(source, sha256 or {}))
        return replace(found, task=variant.task, size=variant.size, stored_as=_stored_as(source))


def _of_source(source, words: str) -> Subject:
    """Of a source into which nothing is merged here; what was merged before may stand in its metadata."""
    said = source.metadata.get(embedded.ENTRY)
    plain = Subject(words, _name(source), itself=words)
    if said is None:
        return plain
    try:
        told = embedded.tell(strict_json.parse(said.encode()), source.name)
    except (RecipeError, HeaderError, ValueError):
        return plain                               # another program's entry, or of the first version: a base like any other
    hashes = [lora.sha256.get(told.role, "") for each in told.recipe.passes for lora in each.loras if told.role in lora.files]
    merged = digest(told.recipe, told.role, hashes)
    name = told.base.get("name", "")
    known = [f"{word}:{told.base[word]}" for word in WORDS if word in told.base]
    base = " ".join([*known, f"name:{_file_name(name)}"])
    return Subject(base, name, loras_of(told.recipe, told.role, hashes), merged, itself=words)


def header_digest(files: list[dict]) -> str:
    """What tells a base apart without reading it: SHA-256 of its headers' hashes and of its sizes, as hex.

    files: of `Source.identity()`; path, name and time of change do not count.
    """
    said = "".join(f"{file['header_sha256']} {file['size']}\n" for file in files if "header_sha256" in file)
    return hashlib.sha256(said.encode()).hexdigest()


def sample_digest(source) -> str:
    """What tells weights apart, however they are packed into files: SHA-256 of the first rows of some block linears, as hex.

    source: bases.source.Source, of which these rows are read. Two models that differ in none of them are taken for one.
    """
    keys = sorted(key for key in list(source.keys()) if is_block_linear(key, source.spec(key)))
    chosen = [keys[place * len(keys) // SAMPLED] for place in range(SAMPLED)] if keys else []
    digest = hashlib.sha256()
    for key in dict.fromkeys(chosen):
        digest.update(key.encode() + source.read(key, (0, 1)).numpy().tobytes())
    return digest.hexdigest()


def _words(source, sha256: Mapping[str, str]) -> str:
    known = sha256.get(source.path)
    header = header_digest(source.identity()["files"])
    return " ".join([f"sample:{sample_digest(source)}", f"header:{header}", *([f"sha256:{known}"] if known else []),
                     f"name:{_file_name(_name(source))}"])


def _name(source) -> str:
    """As a published file calls its base (jobs/metadata.py): a file's name, never that of a folder."""
    return source.identity()["files"][0]["name"] if os.path.isdir(source.path) else source.name


def _file_name(name: str) -> str:
    """Without folders and spaces, which part words."""
    return name.replace("\\", "/").rpartition("/")[2].replace(" ", "_")


def _stored_as(source) -> str:
    """The format of most block linears."""
    keys = [key for key in list(source.keys()) if is_block_linear(key, source.spec(key))]
    names = Counter(source.formats.get(key) or NAMES[source.spec(key).dtype] for key in keys)
    if not names:
        return ""
    name = names.most_common(1)[0][0]
    return FLOATS.get(name, name)
