"""What an ordinary MODEL carries besides weights and weight patches: refused by name where a file could not hold it, or told.

Fields of comfy/model_patcher.py, ModelPatcher. Whatever acts only while sampling (shift, attention, caches) is left to the sampler;
whatever would change the weights, or stands in for them, at a time or in a way that no file can, is an error.
"""
import torch

from ..engine.errors import SourceError

PREFIX = "diffusion_model."
BYPASS = "bypass_lora"                             # key of LoraLoaderBypass (comfy/weight_adapter/bypass.py)


def check_bakeable(model) -> None:
    """Raise SourceError that names everything on this MODEL which cannot become weights of a file."""
    found = [*_injections(model), *_time_dependent(model), *_objects(model), *_patches(model)]
    if found:
        raise SourceError(f"this MODEL cannot be baked: {'; '.join(found)}")


def told(model) -> list[str]:
    """What stays behind, in words: it acts while sampling, and a file of weights does not have it."""
    options, lines = model.model_options, []
    objects = [name for name, thing in model.object_patches.items() if not _is_weight(name, thing)]
    if objects:
        lines.append(f"not stored: {', '.join(sorted(objects))}; put those nodes (ModelSamplingSD3) behind the loaded file again")
    used = [name for name, value in options.get("transformer_options", {}).items() if value]
    used += [name for name in options if name != "transformer_options"]
    used += [f"wrapper {kind}" for kind, by_key in model.wrappers.items() if any(by_key.values())]
    used += [f"{name} (additional model)" for name in model.additional_models]
    if used:
        lines.append(f"not stored, acts while sampling: {', '.join(sorted(used))}")
    outside = [key for key in model.patches if not key.startswith(PREFIX)]
    lines += [f"not stored: patches of {len(outside)} weights outside the diffusion model, first {outside[0]}"] if outside else []
    return lines


def _injections(model) -> list[str]:
    names = [name for name, injections in model.injections.items() if injections]
    others = [name for name in names if name != BYPASS]
    bypass = ["a bypass LoRA acts beside the weights; use the normal LoRA loader"] if BYPASS in names else []
    return bypass + ([f"injection {', '.join(others)} changes the modules; take the MODEL before that node"] if others else [])


def _time_dependent(model) -> list[str]:
    found = []
    if model.weight_wrapper_patches:
        names = list(model.weight_wrapper_patches)
        found.append(f"weight wrappers act on {len(names)} weights at every use, first {names[0]}; take the MODEL before that node")
    if model.hook_patches or model.forced_hooks is not None:
        found.append("LoRA hooks change with the time of sampling; use the normal LoRA loader")
    return found


def _objects(model) -> list[str]:
    names = [name for name, thing in model.object_patches.items()
             if (name + ".").startswith(PREFIX) and isinstance(thing, torch.nn.Module)]
    return [f"modules are replaced ({', '.join(names[:3])}), as by a compile node; take the MODEL before it"] if names else []


def _patches(model) -> list[str]:
    keys = [key for key, patches in model.patches.items() for patch in patches
            if isinstance(patch[1], tuple) and len(patch[1]) == 2 and patch[1][0] == "model_as_lora"]
    return [f"{keys[0]}: a model used as a hook's LoRA; merge it with ModelMergeSimple"] if keys else []


def _is_weight(name: str, thing: object) -> bool:
    return name.startswith(PREFIX) and isinstance(thing, torch.Tensor)
