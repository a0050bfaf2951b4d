"""What a model or LoRA file is, told from its headers and small tensors: kind, role, formats, scales, recipe, faults, readers."""
import dataclasses
import os
import statistics
from collections import Counter

from .. import strict_json
from ..bases import stated as reader
from ..bases.names import is_diffusers, to_native
from ..bases.quant_entries import COMPANIONS, METADATA, Fetch
from ..bases.roles import role_of
from ..bases.shards import find_files, read_headers
from ..bases.source import open_source
from ..bases.stated import Stated
from ..bases.variant import detect
from ..errors import LoraError, RecipeError, SourceError
from ..header import Header
from ..loras.classify import classify, family
from ..loras.lora import open_lora
from ..loras.routing import route
from ..loras.task import task_of
from ..plans import of_file
from ..recipes import embedded
from ..specs import NAMES, TensorSpec
from . import contract, openers
from .gguf_file import inspect_gguf, is_gguf

HEADER = "_quantization_metadata that is not readable"


def inspect(path: str | os.PathLike) -> dict:
    """Facts about the file, index or folder at `path`, ready for JSON.

    "what" is the variant's title, or why it is no base model; "dtypes": name -> tensors, bytes; "kept": the same of what is not
    quantized; "quantized": format -> layers; "layers": layer -> format, full_precision, input_scale (None without one);
    "input_scales": format -> layers, min, median, max; "cards": which share of the work each class of card does in which unit;
    "problems": key, text, severity, errors first (contract.py); "opens_in": program, version, why (openers.py; [] for a LoRA);
    "recipe": what a finished file of this pack tells, None for another's; "lora": None for what is none, else rank, family,
    dialects, kinds, expert, task and the like (classify.py, routing.py, task.py).
    Raises HeaderError when the header is damaged, SourceError when nothing is there.
    """
    path = os.fspath(path)
    if is_gguf(path):
        found = inspect_gguf(path)
        return {**found, "problems": list(map(dataclasses.asdict, found["problems"])), "recipe": _recipe(path, found["metadata"])}
    headers = read_headers(find_files(path))
    metadata = headers[0].metadata
    role = role_of(path, metadata)
    with reader.fetching(headers) as fetch:
        stated = reader.read(headers, fetch)
        problems, layers = contract.judge(stated, fetch), _layers(stated, fetch)
    what, is_model, specs = _what(path, stated, metadata)
    lora = None if is_model else _lora(path, headers)
    dtypes = _dtypes({key: entry.spec for header in headers for key, entry in header.entries.items()})
    return {
        "name": os.path.basename(path.rstrip("/\\")), "bytes": sum(header.size for header in headers),
        "tensors": sum(len(header.entries) for header in headers), "files": len(headers),
        "what": what, "role": role.role, "evidence": role.evidence, "dtypes": dtypes,
        "kept": _dtypes(_kept(stated)), "quantized": _counted(stated), "layers": layers, "input_scales": _input_scales(layers),
        "problems": list(map(dataclasses.asdict, problems)),
        "cards": of_file.card_reasons(specs, of_file.choices_of(layers)) if specs and layers else [],
        "opens_in": [] if lora else openers.of_model(stated, problems, dtypes, len(headers)),
        "recipe": _recipe(path, metadata), "lora": lora, "metadata": metadata,
    }


class _Headers:
    """A model as `detect` asks for it, whatever its formats."""

    def __init__(self, path: str, stated: Stated, metadata: dict[str, str]):
        self.path, self.metadata = path, metadata
        native = is_diffusers(stated.specs)
        self._specs = {to_native(key) if native else key: spec for key, spec in stated.specs.items()}

    def keys(self) -> list[str]:
        return list(self._specs)

    def spec(self, key: str) -> TensorSpec:
        return self._specs[key]


def _what(path: str, stated: Stated, metadata: dict[str, str]) -> tuple[str, bool, dict[str, TensorSpec]]:
    """In words; whether it is a whole diffusion model, which no LoRA is; what its weights are before they were packed."""
    try:
        title = f"{detect(_Headers(path, stated, metadata)).title}, "
    except SourceError:
        title = ""
    try:
        with open_source(path, allow_lossy=True) as source:
            specs = {key: source.spec(key) for key in list(source.keys())}
            return detect(source).title + (f", lossy source: {source.lossy}" if source.lossy else ""), True, specs
    except SourceError as cause:
        return f"{title}not usable as a base: {cause}", bool(title), {}


def _layers(stated: Stated, fetch: Fetch) -> dict[str, dict]:
    values = {layer: stated.number(f"{layer}.input_scale", fetch) for layer in stated.layers}
    return {layer: {"format": stated.format_of(layer), "full_precision": bool(settings.get("full_precision_matrix_mult")),
                    "input_scale": values[layer] if values[layer] is not None and 0 < values[layer] < float("inf") else None}
            for layer, settings in stated.layers.items()}


def _input_scales(layers: dict[str, dict]) -> dict[str, dict]:
    found: dict[str, list[float]] = {}
    for each in layers.values():
        if each["input_scale"] is not None:
            found.setdefault(each["format"], []).append(each["input_scale"])
    return {name: {"layers": len(values), "min": min(values), "median": statistics.median(values), "max": max(values)}
            for name, values in found.items()}


def _kept(stated: Stated) -> dict[str, TensorSpec]:
    """What is no part of a quantized layer's weight."""
    return {key: spec for key, spec in stated.specs.items() if key.rpartition(".")[0] not in stated.layers
            or key.rpartition(".")[2] not in {"weight", "comfy_quant", *COMPANIONS}}


def _counted(stated: Stated) -> dict[str, int]:
    """Format -> number of layers that say they are in it: by an entry of their own, by the header, or by the older marker."""
    names = [reader.OLDER if stated.is_legacy else stated.format_of(layer) for layer in stated.layers]
    names += [HEADER] if METADATA in stated.unreadable else []
    return dict(Counter(names).most_common())


def _recipe(path: str, metadata: dict) -> dict | None:
    """The recipe inside: for whom, from what, by which version; or why it cannot be read."""
    said = metadata.get(embedded.ENTRY)
    if not isinstance(said, str):
        return None
    try:
        told = embedded.tell(strict_json.parse(said.encode()), os.path.basename(path))
    except (RecipeError, ValueError) as cause:
        return {"unreadable": str(cause)}
    loras = sum(len(each.loras) for each in told.recipe.passes)
    return {"expert": told.role, "base": told.base, "format": told.format, "engine": told.engine, "loras": loras,
            "recipe": told.recipe.to_json()}


def _lora(path: str, headers: list[Header]) -> dict | None:
    if len(headers) > 1 or not os.path.isfile(path):
        return None
    try:
        lora = open_lora(path)
    except LoraError:
        return None                                # it is no LoRA, which `what` tells
    with lora:
        facts, routing, task = classify(lora), route(path, lora), task_of(lora)
        return {"rank": lora.rank, "distillation": lora.is_distillation, "family": family(facts), **facts,
                "expert": routing.expert, "evidence": routing.evidence, "against": list(routing.against),
                "task": task.task, "task_evidence": task.evidence}


def _dtypes(specs: dict[str, TensorSpec]) -> dict[str, dict[str, int]]:
    count, nbytes = Counter(), Counter()
    for spec in specs.values():
        count[NAMES[spec.dtype]] += 1
        nbytes[NAMES[spec.dtype]] += spec.nbytes
    return {name: {"tensors": count[name], "bytes": total} for name, total in nbytes.most_common()}
