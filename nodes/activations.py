"""A MODEL that treats activations as another card would: what W4A4 and W8A8 cost, seen without owning that card.

A card multiplies a quantized layer in the layer's own format when its tensor cores can (engine/plans/cards.py tells which). There
the layer's input is rounded as well, and an `input_scale` of the file takes part. On every other card ComfyUI reads the weight back
to 16 bit and leaves the input as it is (comfy/ops.py, pick_operations: NVFP4 and MXFP8 below SM 10, FP8 below SM 8.9), so that a
wrong input scale shows on the other card alone.

The rounding is put before each layer by a hook (torch, register_forward_pre_hook) that exists while the model is called and not a
moment longer: clones of a MODEL share its modules. A layer that this machine multiplies natively is left alone, or, where the other
card cannot, read back to 16 bit for the length of the call.
"""
from collections.abc import Mapping
from contextlib import ExitStack

import comfy.model_management as mm
from comfy.patcher_extension import WrappersMP
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

from ..engine.errors import SourceError
from ..engine.plans.cards import CARDS, INT8, INTS, NATIVE, NATIVE_UNITS
from ..engine.plans.machine import judge_machine
from .machine import facts
from .rounded_input import LayerActivations, rounded

AS_HERE = "as on this card"
EMULATIONS = {AS_HERE: None, "as on RTX 50 (W4A4)": "rtx50", "as on RTX 40 (W8A8)": "rtx40"}
NAMES = {**CARDS, None: "this card"}
W4A4, W4A8 = "convrot_w4a4", "asym_w4a8_int8"
WRAPPER = "wan22_master.activations"


def layers_of(model) -> dict[str, LayerActivations]:
    """Layer -> how it is stored, of every quantized layer of a loaded MODEL; empty for one in 16 bit, and for GGUF."""
    return {name: _of_module(module) for name, module in model.model.diffusion_model.named_modules()
            if getattr(module, "quant_format", None) is not None and isinstance(module.weight, QuantizedTensor)}


def _of_module(module) -> LayerActivations:
    scale, params = getattr(module, "input_scale", None), module.weight.params
    turned = getattr(params, "convrot", module.quant_format != "int8_tensorwise")
    return LayerActivations(module.quant_format, bool(module._full_precision_mm_config), None if scale is None else float(scale),
                            getattr(params, "convrot_groupsize", 0) if turned else 0)


def emulated(model, layers: Mapping[str, LayerActivations], card: str | None) -> dict[str, LayerActivations]:
    """Those of `layers` whose input has to be rounded here, for the MODEL to compute as on `card`.

    layers: of a preview, as its file will be stored; of a quantized MODEL, `layers_of` it. card: a value of EMULATIONS; None is
    this machine, where a quantized MODEL needs nothing, and a preview, whose weights are plain, what its file does by itself.
    Raises SourceError for a layer that the MODEL does not have.
    """
    units = _units_here() if card is None else NATIVE_UNITS[card]
    modules = dict(model.model.diffusion_model.named_modules())
    missing = sorted(set(layers) - set(modules))
    if missing:
        raise SourceError(f"{missing[0]}: expected in the MODEL, found {len(missing)} of {len(layers)} layers missing; connect the "
                          "MODEL of that very model")
    return {name: _taken(layer, units[layer.format]) for name, layer in layers.items() if layer.format in units
            and not _done_here(modules[name]) and (not layer.full_precision or layer.format in INTS)}


def _taken(layer: LayerActivations, unit: str) -> LayerActivations:
    """How a card with that unit takes the layer's input: where INT8 takes a weight of W4A4, the input has 8 bit, rotated alike."""
    return layer._replace(format=W4A8) if (layer.format, unit) == (W4A4, INT8) else layer


def _units_here() -> dict[str, str]:
    """Formats whose input this machine rounds -> unit. Integer ones it rounds in any case, with a kernel or without."""
    here = facts()
    verdicts = {form: judge_machine(form, here) for form in QUANT_ALGOS}
    return {form: found.unit for form, found in verdicts.items() if found.word == NATIVE or form in INTS}


def _done_here(module) -> bool:
    """Whether ComfyUI rounds this module's input itself: a quantized weight that is not read back before the product.

    Integer weights stay quantized whatever the flag says: the product of their layout rounds the input.
    """
    quantized = getattr(module, "quant_format", None) is not None and isinstance(module.weight, QuantizedTensor)
    return quantized and (module.quant_format in INTS or not module._full_precision_mm)


def unrounded(model, layers: Mapping[str, LayerActivations], card: str | None) -> list[str]:
    """Those of `layers` that this machine multiplies natively and `card` does not: there the weight is read back to 16 bit."""
    modules = dict(model.model.diffusion_model.named_modules())
    return [] if card is None else [name for name, layer in layers.items()
                                    if layer.format not in NATIVE_UNITS[card] and name in modules and _done_here(modules[name])]


def emulate(model, layers: Mapping[str, LayerActivations], card: str | None):
    """A clone of `model` that computes as on `card`; a former emulation on it is replaced. Arguments and errors of `emulated`."""
    chosen, held, clone = emulated(model, layers, card), unrounded(model, layers, card), model.clone()
    clone.remove_wrappers_with_key(WrappersMP.DIFFUSION_MODEL, WRAPPER)
    if chosen or held:
        clone.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, WRAPPER, _wrapper(chosen, held))
    return clone


def _wrapper(layers: Mapping[str, LayerActivations], held: list[str]):
    def call(executor, *args, **kwargs):
        with ExitStack() as stack:
            for name, layer in layers.items():
                hook = executor.class_obj.get_submodule(name).register_forward_pre_hook(_hook(layer))
                stack.callback(hook.remove)
            for name in held:
                module = executor.class_obj.get_submodule(name)
                stack.callback(setattr, module, "_full_precision_mm", module._full_precision_mm)
                module._full_precision_mm = True
            return executor(*args, **kwargs)
    return call


def _hook(layer: LayerActivations):
    def before(module, args):
        smooth = getattr(module, "pre_quant_scale", None)        # forward multiplies by it and rounds then, so it is undone here
        if smooth is None:
            return (rounded(args[0], layer), *args[1:])
        smooth = mm.cast_to_device(smooth, args[0].device, args[0].dtype)
        return (rounded(args[0] * smooth, layer) / smooth, *args[1:])
    return before


def describe(model, layers: Mapping[str, LayerActivations], card: str | None) -> str:
    """What `emulate` does, in words; empty when nothing was asked for, or nothing is quantized."""
    chosen, held = emulated(model, layers, card), unrounded(model, layers, card)
    of, parts = f"of {len(layers)} quantized layers", []
    if chosen:
        kinds = ", ".join(sorted({layers[name].format for name in chosen}))
        parts.append(f"inputs of {len(chosen)} {of} are rounded as on {NAMES[card]} ({kinds})")
    if held:
        parts.append(f"{len(held)} {of} run in 16 bit as there")
    if not parts:
        return "" if card is None or not layers else f"activations: {NAMES[card]} rounds no input here that this card does not"
    dynamic = sum(layer.format == "nvfp4" and layer.input_scale is None for layer in chosen.values())
    clamped = sum(layer.format == "float8_e4m3fn" and layer.input_scale is None for layer in chosen.values())
    parts += [f"{dynamic} nvfp4 without an input scale take it from each input"] if dynamic else []
    parts += [f"{clamped} float8 without an input scale are only clamped to the range of the format"] if clamped else []
    return f"activations: {'; '.join(parts)}"
