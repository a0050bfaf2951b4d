"""Which device is chosen, and that a GPU is only used when it computes like the CPU."""
import pytest
import torch
from wan22_master.engine import device
from wan22_master.engine.errors import PlanError


def test_the_cpu_passes_its_own_self_test():
    assert device.self_test(torch.device("cpu")) is None


@pytest.mark.parametrize(("name", "said"), [("cpu", "as chosen"), ("mps", "no float64"), ("cpu:0", "as chosen")])
def test_cpu_and_mps_end_on_the_cpu_and_say_why(name, said):
    chosen = device.choose(name)
    assert chosen.torch_device == torch.device("cpu") and said in chosen.note


@pytest.mark.parametrize(("name", "said"), [("auto", "no GPU"), ("cuda", "no cuda"), ("xpu", "no xpu"), ("cuda:1", "no cuda")])
def test_a_missing_device_falls_back_and_says_so(monkeypatch, name, said):
    monkeypatch.setattr(device, "_present", lambda kind: False)
    assert said in device.choose(name).note and device.choose(name).torch_device.type == "cpu"


def test_a_device_that_fails_its_self_test_is_replaced(monkeypatch):
    monkeypatch.setattr(device, "_present", lambda kind: kind == "cuda")
    monkeypatch.setattr(device, "self_test", lambda where: "it rounds the wrong way")
    assert device.choose() == device.Device(torch.device("cpu"), "cpu: cuda is not used, it rounds the wrong way")


def test_a_device_that_passes_is_used_and_cuda_comes_first(monkeypatch):
    monkeypatch.setattr(device, "_present", lambda kind: True)
    monkeypatch.setattr(device, "self_test", lambda where: None)
    assert device.choose().torch_device == torch.device("cuda")
    assert device.choose("xpu").torch_device == torch.device("xpu")


def test_an_unknown_device_is_refused_by_name():
    with pytest.raises(PlanError, match="'gpu': expected one of auto, cpu"):
        device.choose("gpu")


def test_a_cast_that_truncates_is_found(monkeypatch):
    plain = torch.Tensor.to

    def truncating(self, target, *rest, **named):
        if target is torch.bfloat16 and self.dtype is torch.float32 and not hasattr(self, "honest"):
            return plain((self.view(torch.int32) >> 16 << 16).view(torch.float32), target)
        return plain(self, target, *rest, **named)

    left, right = device._numbers()
    left.honest = True
    monkeypatch.setattr(device, "_numbers", lambda: (left, right))
    monkeypatch.setattr(torch.Tensor, "to", truncating)
    on_device = left.clone()
    monkeypatch.setattr(left, "to", lambda target: on_device if isinstance(target, torch.device) else plain(left, target))
    assert "bfloat16 differs" in device.self_test(torch.device("cpu"))


def test_a_product_with_the_mantissa_of_tf32_is_found(monkeypatch):
    plain = torch.Tensor.__matmul__

    def tf32(self, other):
        if self.dtype is torch.float32:  # 10 mantissa bits stay
            self, other = ((part.view(torch.int32) >> 13 << 13).view(torch.float32) for part in (self, other))
        return plain(self, other)

    monkeypatch.setattr(torch.Tensor, "__matmul__", tf32)
    assert "TF32" in device.self_test(torch.device("cpu"))


def test_a_device_without_float8_is_found(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "view", lambda *_: (_ for _ in ()).throw(NotImplementedError("no float8 here\nmore")))
    assert device.self_test(torch.device("cpu")) == "it cannot do our casts (no float8 here)"


@pytest.mark.parametrize("before", ["tf32", "ieee", "none"])
def test_full_float32_puts_the_setting_back(before):
    settings = torch.backends.cuda.matmul
    if not hasattr(settings, "fp32_precision"):
        pytest.skip("this torch has only allow_tf32")
    at_first, settings.fp32_precision = settings.fp32_precision, before
    try:
        with pytest.raises(RuntimeError), device.full_float32():
            assert settings.fp32_precision == "ieee"
            raise RuntimeError
        assert settings.fp32_precision == before
    finally:
        settings.fp32_precision = at_first


@pytest.fixture
def medium():
    """What a host program may have chosen: float32 products in bfloat16, where the processor has it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("into", [256, 640])
def test_products_are_of_the_same_bits_whatever_the_host_chose(into, request):
    draw = torch.Generator().manual_seed(0)
    left, right = torch.randn(128, into, generator=draw), torch.randn(into, 1280, generator=draw)
    base = torch.randn(128, 1280, generator=draw)
    plain, added = left @ right, torch.addmm(base, left, right)
    request.getfixturevalue("medium")
    with device.full_float32():
        assert torch.equal(left @ right, plain) and torch.equal(torch.addmm(base, left, right), added)


def test_full_float32_holds_on_the_cpu_too_and_puts_it_back(medium):
    settings = getattr(torch.backends.mkldnn, "matmul", None)
    if not hasattr(settings, "fp32_precision"):
        pytest.skip("this torch has no setting for oneDNN")
    before = settings.fp32_precision
    assert before != "ieee"
    with pytest.raises(RuntimeError), device.full_float32():
        assert settings.fp32_precision == "ieee"
        raise RuntimeError
    assert settings.fp32_precision == before


def test_a_torch_without_the_newer_settings_is_told_by_the_older_name_and_gets_its_choice_back(monkeypatch, medium):
    monkeypatch.setattr(torch.backends.cuda, "matmul", object())
    monkeypatch.setattr(torch.backends.mkldnn, "matmul", None, raising=False)
    with device.full_float32():
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.gpu
def test_a_real_gpu_is_chosen_or_the_note_names_what_it_does_wrong():
    chosen = device.choose()
    assert chosen.torch_device.type != "cpu" or "is not used" in chosen.note
