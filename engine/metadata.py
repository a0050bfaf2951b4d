"""What is said of a model inside its own header: `publish` (nothing private), `private` (all), `none`.

`publish` holds ModelSpec 1.0.1 fields (github.com/Stability-AI/ModelSpec) and one `wan22_master` entry: names without folders,
hashes, strengths, methods, format. `private` adds the source's own metadata and the full recipe with its paths. `config` of the
source goes through untouched at every level, because ComfyUI's detection reads it. What would be wrong in the new file is never
carried: `_quantization_metadata` (ComfyUI would add comfy_quant to unquantized layers), hashes of the source, and prompt and
workflow of whoever saved it.
"""
import json
import os

from .layout import HASH_SLOT

MODES = ("publish", "private", "none")
NEVER = ("_quantization_metadata", "prompt", "workflow", "sshs_model_hash", "sshs_legacy_hash", "format", "total_size")
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
    """Passes of a recipe as published: the LoRAs that this expert got, by base name (unless `names` is off) and hash."""
    told = []
    for each in passes:
        loras = [{**({"name": os.path.basename(lora.files[role])} if names else {}), "sha256": sha256[lora.files[role]],
                  "strength": lora.strength.get(role, 1.0), "method": lora.resolved} for lora in each.loras if lora.files.get(role)]
        if loras:
            told.append({"global_factor": each.global_factor, "loras": loras})
    return told


def build(recipe, role: str, facts: dict, source_metadata: dict[str, str]) -> dict[str, str]:
    """Header metadata of one output.

    recipe: resolved; facts: task, size, format, engine, base (name and, where known, sha256), passes (from `describe_passes`).
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
    told = {"version": 1, "expert": role, **{name: facts[name] for name in ("engine", "format", "base", "passes")},
            **({"title_version": recipe.title_version} if recipe.title_version else {})}
    if recipe.save.metadata == "private":
        own = {key: value for key, value in source_metadata.items() if key not in NEVER and not key.startswith("modelspec.")}
        carried = own | carried
        told["recipe"] = recipe.to_json()
    return {**carried, **said, "wan22_master": json.dumps(told, sort_keys=True, ensure_ascii=False)}
