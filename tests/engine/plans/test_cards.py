"""Verdicts on cards against comfy-kitchen's own tables, and against ComfyUI's own functions and products."""

import json
import os
import subprocess
from types import SimpleNamespace

import comfy_kitchen.backends.cuda as kitchen_cuda
import pytest
from comfy_kitchen.tensor import (
    AsymW4A8Int8Layout,
    TensorCoreConvRotW4A4Layout,
    TensorCoreFP8Layout,
    TensorCoreMXFP8Layout,
    TensorCoreNVFP4Layout,
    TensorWiseINT8Layout,
)
from wan22_master.engine.plans.cards import AFTER, CARDS, FLOATS, INTS, PLAIN, UNITS, judge, native_formats, newest
from wan22_master.engine.plans.machine import Machine, card_of, judge_machine
from wan22_master.quant.formats import BLOCK_TYPES, QUANTIZED

CAPABILITIES = {"rtx50": (12, 0), "rtx40": (8, 9), "rtx30": (8, 6), "rtx20": (7, 5)}
LAYOUTS = {"float8_e4m3fn": TensorCoreFP8Layout, "mxfp8": TensorCoreMXFP8Layout, "nvfp4": TensorCoreNVFP4Layout,
           "int8_tensorwise": TensorWiseINT8Layout, "convrot_w4a4": TensorCoreConvRotW4A4Layout}
KERNELS = frozenset({"int8_linear", "w4a8_int8_linear", "convrot_w4a4_linear"})


def machine(card, **changes):
    """A machine with a torch, a ComfyUI and kernels that leave nothing out."""
    vendor = {"rdna": "amd", "arc": "intel", "cpu": "cpu"}.get(card, "nvidia")
    capability = CAPABILITIES.get(card)
    kernels = KERNELS if capability or card == "rdna" else ()        # of a backend, listed for each of its cards alike
    facts = {"vendor": vendor, "capability": capability, "torch": "2.13.0+cu130", "cuda": "13.0" if capability else None,
             "comfyui": "0.33.0", "formats": frozenset(AFTER), "fp8": bool(capability) and capability >= (8, 9),
             "nvfp4": card == "rtx50", "mxfp8": card == "rtx50", "kernels": frozenset(kernels)}
    return Machine(**(facts | changes))


def test_every_format_that_we_write_has_a_verdict_on_every_card():
    assert set(AFTER) == FLOATS | INTS == QUANTIZED
    for card in CARDS:
        for form in [*AFTER, *PLAIN]:
            found = judge(form, card)
            assert found.unit in UNITS and found.reason and (found.word != "native" or form not in native_formats(card)
                                                             or found.unit != "16 bit")
    with pytest.raises(ValueError, match="format: expected one of float8_e4m3fn"):
        judge("q4_k", "rtx50")
    with pytest.raises(KeyError):
        judge("nvfp4", "rtx60")


def test_a_type_of_gguf_is_decoded_and_multiplied_in_16_bit_everywhere():
    for name in BLOCK_TYPES:
        found = {judge(name, card, full_precision=slow) for card in CARDS for slow in (True, False)}
        found |= {judge_machine(name, machine(card)) for card in CARDS}
        assert {(each.word, each.unit) for each in found} == {("emulated", "16 bit")} and "ComfyUI-GGUF" in found.pop().reason


@pytest.mark.parametrize("card", CAPABILITIES)
@pytest.mark.parametrize("form", LAYOUTS)
def test_native_is_what_comfy_kitchen_says_of_the_capability(form, card):
    assert (judge(form, card).word == "native") == (CAPABILITIES[card] >= LAYOUTS[form].MIN_SM_VERSION)


@pytest.mark.parametrize("card", CAPABILITIES)
def test_w4a8_below_sm80_has_no_kernel_but_still_multiplies_in_int8(card):
    kernel = CAPABILITIES[card] >= AsymW4A8Int8Layout.MIN_SM_VERSION
    assert judge("asym_w4a8_int8", card).unit == "int8"
    assert ("unpacked by plain torch" in judge("asym_w4a8_int8", card).reason) == (not kernel)
    by_facts = judge_machine("asym_w4a8_int8", machine(card))
    assert by_facts.unit == "int8" and ("unpacked at every call" in by_facts.reason) == (not kernel)


@pytest.mark.parametrize(("card", "capability"), [*CAPABILITIES.items(), ("rtx40", (9, 0)), ("rtx50", (10, 0))])
def test_int4_is_where_comfy_kitchen_takes_its_int4_product(monkeypatch, card, capability):
    monkeypatch.setattr(kitchen_cuda, "_cuda_device_capability", lambda index: capability)
    asked = SimpleNamespace(is_cuda=True, get_device=lambda: 0)
    # SM 7.5 has a product of its own for more than a handful of rows (_should_use_turing_int4)
    is_int4 = kitchen_cuda._cuda_device_supports_native_int4_mma(asked) or capability == (7, 5)
    assert judge_machine("convrot_w4a4", machine(card, capability=capability)).unit == ("int4" if is_int4 else "int8")
    if capability == CAPABILITIES[card]:
        assert judge("convrot_w4a4", card).unit == ("int4" if is_int4 else "int8")


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("full_precision", [False, True])
def test_a_machine_with_everything_is_judged_as_its_class(card, full_precision):
    facts = machine(card)
    assert card_of(facts) == card
    for form in [*AFTER, *PLAIN]:
        by_class = judge(form, card, full_precision=full_precision)
        by_facts = judge_machine(form, facts, full_precision=full_precision)
        assert (by_facts.word, by_facts.unit) == (by_class.word, by_class.unit), form


@pytest.mark.parametrize(("form", "changes", "word", "reason"), [
    ("asym_w4a8_int8", {"formats": frozenset({"nvfp4"}), "comfyui": "0.29.1"}, "not loadable",
     "ComfyUI 0.29.1 does not know it: one newer than 0.30.0 is needed"),
    ("mxfp8", {"mxfp8": False, "torch": "2.9.1+cu130"}, "emulated", "torch 2.9.1+cu130, 2.10 is needed"),
    ("nvfp4", {"nvfp4": False, "capability": (8, 9)}, "emulated", "compute capability 8.9, 10.0 is needed"),
    ("float8_e4m3fn", {"fp8": False, "torch": "2.2"}, "emulated", "ComfyUI says that this card and torch 2.2 cannot"),
    ("float8_e5m2", {}, "fails", "use full precision"),
    ("convrot_w4a4", {"kernels": frozenset(), "cuda": "12.8"}, "emulated",
     "comfy-kitchen's CUDA backend is off because torch is built for CUDA 12.8; 13.0 is needed: no INT4 kernel here"),
    ("int8_tensorwise", {"kernels": frozenset(), "cuda": "12.8"}, "native",
     "INT8 by plain torch; comfy-kitchen's CUDA backend is off"),
    ("nvfp4", {"kernels": frozenset(), "cuda": "12.8"}, "native", "inputs are quantized by plain torch, slower"),
    ("int8_tensorwise", {"vendor": "intel", "torch": "2.8.0+xpu", "kernels": frozenset()}, "fails", "2.9 is needed"),
    ("int8_tensorwise", {"capability": (6, 1), "kernels": frozenset()}, "emulated", "start at compute capability 7.5"),
])
def test_what_a_machine_lacks_is_named(form, changes, word, reason):
    found = judge_machine(form, machine("rtx50", **changes))
    assert (found.word, reason in found.reason) == (word, True), found


def test_fp8_on_amd_is_what_comfyui_says():
    assert judge_machine("float8_e4m3fn", machine("rdna")).word == "emulated"
    assert judge_machine("float8_e4m3fn", machine("rdna", fp8=True)).unit == "fp8"


def test_floors_are_versions_in_the_order_of_versions():
    assert newest({"nvfp4", "mxfp8", "bf16"}) == "ComfyUI newer than 0.17.0"  # as text 0.7.0 would come after 0.17.0
    assert newest({"keep"}) is None and newest({"bf16"}) is None and newest({"nvfp4"}) == "ComfyUI newer than 0.7.0"


ASK = """
import comfy.options; comfy.options.enable_args_parsing(); import sys; sys.argv = ["x", "--cpu"]
import json, torch
import comfy.model_management as host, comfy.ops
from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

def product(name, full_precision):
    torch.manual_seed(0)
    weight, rows = torch.randn(256, 512), torch.randn(64, 512)
    disabled = {"nvfp4", "mxfp8", "float8_e4m3fn", "float8_e5m2"}      # what pick_operations finds on a CPU
    linear = comfy.ops.mixed_precision_ops({"mixed_ops": True}, torch.float32, disabled=disabled).Linear(512, 256, bias=False)
    options = {"scale": "recalculate"} if name.startswith("float8") else {}
    parts = QuantizedTensor.from_float(weight, QUANT_ALGOS[name]["comfy_tensor_layout"], **options).state_dict("linear.weight")
    told = json.dumps({"format": name, "full_precision_matrix_mult": full_precision}).encode()
    holder = torch.nn.Module(); holder.linear = linear
    holder.load_state_dict({**parts, "linear.comfy_quant": torch.tensor(list(told), dtype=torch.uint8)}, strict=False)
    wanted = rows @ linear.weight.dequantize().T
    return ((linear(rows) - wanted).norm() / wanted.norm()).item()

def supports(capability):
    host.is_nvidia, host.torch_version_numeric = lambda: True, (2, 13)
    torch.cuda.get_device_properties = lambda device: type("Card", (), {"major": capability[0], "minor": capability[1]})
    return [host.supports_fp8_compute(), host.supports_nvfp4_compute(), host.supports_mxfp8_compute()]

products = {name: [product(name, each) for each in (False, True)] for name in QUANT_ALGOS}
print(json.dumps({"formats": sorted(QUANT_ALGOS), "products": products,
                  "cards": {card: supports(each) for card, each in json.load(sys.stdin).items()}}))
"""


@pytest.fixture(scope="module")
def comfyui_says(comfyui_path):
    """What a real ComfyUI on a CPU knows of formats, does with full precision, and answers for four cards."""
    command = [str(comfyui_path / ".venv" / "bin" / "python"), "-c", ASK]
    environment = {**os.environ, "PYTHONPATH": str(comfyui_path)}
    done = subprocess.run(command, input=json.dumps(CAPABILITIES), cwd=comfyui_path, env=environment, capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.comfyui
def test_comfyui_itself_knows_these_formats_and_multiplies_them_on_these_cards(comfyui_says):
    assert set(comfyui_says["formats"]) == set(AFTER)
    for card, answers in comfyui_says["cards"].items():
        for form, can in zip(("float8_e4m3fn", "nvfp4", "mxfp8"), answers, strict=True):
            assert (judge(form, card).word == "native") == can, (form, card)


@pytest.mark.comfyui
def test_full_precision_changes_the_product_of_no_int_format_in_comfyui_itself(comfyui_says):
    for form, (plain, full) in comfyui_says["products"].items():
        if form in INTS:
            assert plain == full > 5e-3, form  # 8-bit inputs cost 0.7 %, 4-bit ones 13 %
            assert judge(form, "rtx30", full_precision=True).unit == judge(form, "rtx30").unit
        else:
            assert full < 1e-5, form  # a float32 product of 512 terms
            assert judge(form, "rtx50", full_precision=True).word == "emulated"
