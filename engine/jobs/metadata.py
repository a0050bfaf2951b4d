"""What is said of a model inside its own header: `publish` (nothing private), `private` (all), `none`.

`publish` holds ModelSpec 1.0.1 fields (github.com/Stability-AI/ModelSpec) and one `wan22_master` entry: names without folders,
hashes, strengths, methods, format, and the recipe that makes this file again (embedded.py). `private` adds the source's own
metadata and has this expert's recipe with its paths instead. `config` of the source goes through untouched at every level, because
ComfyUI's detection reads it; `config_notice` tells what else it gives away. `before` are LoRAs that the base had in it already.
What would be wrong in the new file is never carried: `_quantization_metadata` (ComfyUI would add comfy_quant to unquantized
layers), hashes and sizes of the source, and prompt and workflow of whoever saved it.
"""
import dataclasses
import json
import os
import re

from .. import strict_json
from ..recipes import embedded
from .layout import HASH_SLOT

NEVER = re.compile(r"hash|sha\d|checksum|md5|blake|crc32|(?<![a-z])(file|total|data)?(sha|size)(?![a-z])|prompt|workflow"
                   r"|extra_pnginfo|quantization|^format$|^modelspec\."
                   r"|^(gguf|general|split|tokenizer|comfy\.gguf)\.", re.IGNORECASE)
# A folder, a home or an address, as a config of a trainer may hold it; a name of a repository, `Wan-AI/Wan2.2`, is none.
PATH = re.compile(r"^(?:[/~\\]|\.{1,2}[/\\]|[A-Za-z]:[/\\]|[a-z]+://)|\\")
# Steps of the 1000 that an expert is for (Wan2.2 configs: boundary 0.875 T2V, 0.9 I2V).
RANGES = {("t2v", "high_noise"): "875,1000", ("t2v", "low_noise"): "0,875",
          ("i2v", "high_noise"): "900,1000", ("i2v", "low_noise"): "0,900"}


def architecture(task: str, role: str, size: str) -> str:
    """ModelSpec architecture id: `wan2.2-t2v-14b` for an expert of a pair, `wan-...` where the file alone does not tell 2.1 from
    2.2."""
    return f"{'wan' if role == 'model' else 'wan2.2'}-{task}-{size.lower()}"


def public_name(source) -> str:
    """What a published file may call its base: a file's name, never that of a folder, which may be a person's."""
    return source.identity()["files"][0]["name"] if os.path.isdir(source.path) else source.name


def describe_passes(passes, role: str, sha256: dict[str, str], *, names: bool) -> list[dict]:
    """Passes of a recipe as published: the LoRAs that this expert got, by base name (unless `names` is off) and hash.

    A LoRA of strength 0 is in none of the bytes and is left out; the constants of classic injection are told where it was used.
    """
    told = []
    for each in passes:
        got = embedded.given(each, role)
        loras = [{**({"name": os.path.basename(lora.files[role])} if names else {}), "sha256": sha256[lora.files[role]],
                  "strength": lora.strength.get(role, 1.0), "method": lora.resolved} for lora in got]
        gated = {"classic": dataclasses.asdict(each.classic)} if any(lora.resolved == "classic" for lora in got) else {}
        if loras:
            told.append({"global_factor": each.global_factor, "loras": loras, **gated})
    return told


def config_notice(source_metadata: dict[str, str]) -> str | None:
    """What the base's config holds besides the model's settings, or that looks like a path, in words; None when it is nothing.

    It is carried all the same, at every level. Text that is no JSON has been refused before (settings.py).
    """
    try:
        config = strict_json.parse(source_metadata.get("config", "{}").encode())
    except ValueError:
        return None
    found = [name for name in config if name != "transformer"] + _paths(config.get("transformer"))
    if not found:
        return None
    shown = ", ".join(f"`{name[:60]}`" for name in found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
    return f"config of the base is carried as it is and holds {shown}; look whether that may be published"


def _paths(value: object, name: str = "transformer") -> list[str]:
    """Names of the settings inside `value` whose text looks like a path."""
    if isinstance(value, dict | list):
        inside = value.items() if isinstance(value, dict) else ((name, each) for each in value)
        return [place for key, each in inside for place in _paths(each, key)]
    return [name] if isinstance(value, str) and value and (PATH.search(value) or "path" in name.lower()) else []


def build(recipe, role: str, facts: dict, source_metadata: dict[str, str]) -> dict[str, str]:
    """Header metadata of one output.

    recipe: resolved; facts: task, size, format, label of the output, engine, base (name and, where known, sha256), passes (from
    `describe_passes`), and merge, the version of the arithmetic.
    """
    carried = {"config": source_metadata["config"]} if "config" in source_metadata else {}
    if recipe.save.metadata == "none":
        return carried
    said = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.title": recipe.title,
        "modelspec.architecture": architecture(facts["task"], role, facts["size"]),
        "modelspec.implementation": "https://github.com/Wan-Video/Wan2.2",
        "modelspec.hash_sha256": HASH_SLOT,
        **({"modelspec.date": recipe.date} if recipe.date else {}),
        **({"modelspec.timestep_range": span} if (span := RANGES.get((facts["task"], role))) else {}),
    }
    told = {"version": 1, "expert": role, **{name: facts[name] for name in ("engine", "merge", "format", "base", "passes")},
            **({"title_version": recipe.title_version} if recipe.title_version else {})}
    before = embedded.baked(source_metadata)
    if before:
        told["before"] = [{"sha256": sha256, **({"name": name} if name and recipe.save.lora_names else {})}
                          for sha256, name in before.items()]
    hashes = [lora["sha256"] for each in facts["passes"] for lora in each["loras"]]
    if recipe.save.metadata == "private":
        own = {key: value for key, value in source_metadata.items() if not NEVER.search(key)}
        carried = own | carried
        told["recipe"] = embedded.describe_whole(recipe, role, facts["label"], hashes)
    else:
        told["recipe"] = embedded.describe(recipe, role, facts["base"]["name"], facts["label"], hashes)
    return {**carried, **said, embedded.ENTRY: json.dumps(told, sort_keys=True, ensure_ascii=False)}
