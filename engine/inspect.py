"""What a model or LoRA file is, told from its headers: kind, role, dtypes, quantized layers, metadata."""
import os
from collections import Counter

from . import strict_json
from .bases import scaled
from .bases.roles import role_of
from .bases.shards import find_files, read_headers
from .bases.source import open_source
from .bases.variant import detect
from .errors import LoraError, MergeError, SourceError
from .header import Header
from .loras.classify import classify, family
from .loras.lora import open_lora
from .loras.routing import route
from .loras.task import task_of
from .specs import NAMES
from .system import open_read

ENTRY, LONGEST = ".comfy_quant", 4096  # the JSON entry of a quantized layer (ComfyUI comfy/ops.py); more bytes are no such entry


def inspect(path: str | os.PathLike) -> dict:
    """Facts about the file, index or folder at `path`, ready for JSON.

    "what" is the variant's title, or why it is no base model; "dtypes": name -> tensors, bytes; "quantized": format -> layers;
    "lora": None for what is none, else rank, family, dialects, kinds, expert, task and the like (classify.py, routing.py, task.py).
    Raises HeaderError when the header is damaged, SourceError when nothing is there.
    """
    path = os.fspath(path)
    headers = read_headers(find_files(path))
    metadata = headers[0].metadata
    role = role_of(path, metadata)
    return {
        "name": os.path.basename(path.rstrip("/\\")), "bytes": sum(header.size for header in headers),
        "tensors": sum(len(header.entries) for header in headers), "files": len(headers),
        "what": _what(path), "role": role.role, "evidence": role.evidence,
        "dtypes": _dtypes(headers), "quantized": _quantized(headers), "lora": _lora(path, headers), "metadata": metadata,
    }


def _what(path: str) -> str:
    try:
        with open_source(path, allow_lossy=True) as source:
            return detect(source).title + (f", lossy source: {source.lossy}" if source.lossy else "")
    except SourceError as cause:
        return f"not usable as a base: {cause}"


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


def _dtypes(headers: list[Header]) -> dict[str, dict[str, int]]:
    count, nbytes = Counter(), Counter()
    for entry in (entry for header in headers for entry in header.entries.values()):
        name = NAMES[entry.spec.dtype]
        count[name] += 1
        nbytes[name] += entry.nbytes
    return {name: {"tensors": count[name], "bytes": total} for name, total in nbytes.most_common()}


def _quantized(headers: list[Header]) -> dict[str, int]:
    """Format -> number of layers that say they are in it: by an entry of their own, by the header, or by the older marker."""
    found: dict[str, str] = {}
    for header in headers:
        found |= _by_header(header)
        with open_read(header.path) as file:
            for key, entry in header.entries.items():
                if key.endswith(ENTRY) and entry.nbytes <= LONGEST:
                    text = bytearray(entry.nbytes)
                    file.read_into(entry.start, text)
                    found[key.removesuffix(ENTRY)] = _format_in(bytes(text))
                elif key.endswith(".scale_weight"):
                    found.setdefault(key.removesuffix(".scale_weight"), "scaled fp8, older kind")
    return dict(Counter(found.values()).most_common())


def _by_header(header: Header) -> dict[str, str]:
    try:
        layers = scaled.metadata_layers(header.path, header.metadata) or {}
    except MergeError:
        return {"header": "_quantization_metadata that is not readable"}
    return {layer: str(said.get("format")) if isinstance(said, dict) else "unreadable" for layer, said in layers.items()}


def _format_in(text: bytes) -> str:
    try:
        return str(strict_json.parse(text).get("format"))
    except ValueError:
        return "unreadable"


def lines(found: dict) -> list[str]:
    """The facts as text for a person."""
    told = [f"{found['name']}: {found['bytes'] / 1e9:.2f} GB, {found['tensors']} tensors, {found['files']} file(s)",
            f"  what: {'LoRA, rank ' + found['lora']['rank'] if found['lora'] else found['what']}",
            f"  role: {found['role'] or 'unknown'} ({found['evidence']})"]
    told += [f"  {name}: {each['tensors']} tensors, {each['bytes'] / 1e9:.3f} GB" for name, each in found["dtypes"].items()]
    told += [f"  quantized: {count} layers {name}" for name, count in found["quantized"].items()]
    told += _lora_lines(found["lora"]) if found["lora"] else []
    shown = {key: value if len(value) <= 100 else value[:100] + "..." for key, value in sorted(found["metadata"].items())}
    return told + [f"  {key} = {value}" for key, value in shown.items()]


def _lora_lines(lora: dict) -> list[str]:
    against = f"; but {', '.join(lora['against'])}" if lora["against"] else ""
    told = [f"  family: {lora['family']}, {lora['blocks']} blocks" + (f", {lora['coverage']} coverage" if lora["coverage"] else ""),
            f"  dialect: {', '.join(f'{name} ({count} keys)' for name, count in lora['dialects'].items())}",
            f"  adapters: {', '.join(f'{kind} ({count} keys)' for kind, count in lora['kinds'].items())}",
            f"  expert: {lora['expert']} ({lora['evidence']}{against})",
            f"  task: {lora['task'] or 'unknown'} ({lora['task_evidence']})"]
    return told + ([f"  distillation LoRA: {lora['distillation']}"] if lora["distillation"] else [])
