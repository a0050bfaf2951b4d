"""Nothing that is written or kept depends on what the host program chose for its float32 products."""
import hashlib
from pathlib import Path

import pytest
import torch
from wan22_master.engine import products
from wan22_master.engine.bases.source import open_source
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.engine.loras.lora import open_lora
from wan22_master.engine.loratools.extract import Extraction, extract
from wan22_master.engine.loratools.merge import Merging, Part, merge
from wan22_master.engine.loratools.sketch import Method
from wan22_master.engine.loratools.wish import Ranks, Save, Watch
from wan22_master.tests.engine import tiny

FFN = 2560                                         # so large that oneDNN takes bfloat16 where it may
LAYER = "blocks.0.ffn.0"


def sha256(path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def extracted(folder, name: str):
    base = {key: value.float() for key, value in tiny.base(0, ffn=FFN).items()}
    moved = 1e-3 * torch.randn(FFN, tiny.DIM, generator=torch.Generator().manual_seed(1))
    tuned = base | {f"{LAYER}.weight": base[f"{LAYER}.weight"] + moved}
    paths = [tiny.save(folder / f"{each}.safetensors", tensors) for each, tensors in (("tuned", tuned), ("base", base))]
    with open_source(paths[0]) as one, open_source(paths[1]) as other:
        return sha256(extract(one, other, Extraction(Ranks(100), method=Method(exact_side=8)),
                              Save(str(folder / f"{name}.safetensors")), Watch()).path)


def loha(folder, out: int, into: int, rank: int):
    """No product of factors, so its delta is multiplied out."""
    draw = torch.Generator().manual_seed(4)
    sides = {"w1_a": (out, rank), "w1_b": (rank, into), "w2_a": (out, rank), "w2_b": (rank, into)}
    stem = f"lora_unet_{LAYER.replace('.', '_')}"
    tensors = {f"{stem}.hada_{part}": torch.randn(shape, generator=draw) for part, shape in sides.items()}
    return tiny.save(folder / "loha.safetensors", tensors)


def merged(folder, name: str):
    with open_lora(loha(folder, 640, 640, 8)) as lora:                 # beyond sketch.EXACT_SIDE
        return sha256(merge([Part(lora, 1.0)], Merging("svd", Ranks(64)), Save(str(folder / f"{name}.safetensors")), Watch()).path)


def weighed(folder, name: str):
    model = tiny.save(folder / "m.safetensors", tiny.base(ffn=FFN))
    style = loha(folder, FFN, tiny.DIM, 512)
    wish = tiny.recipe(folder / "out", {"model": model}, [{"files": {"model": style}}], formats=("bf16",))
    with plan_recipe(wish, folder / name) as plan:
        return plan.experts[0].ledgers[0]["energies"]["total"]


@pytest.mark.parametrize("make", [extracted, merged, weighed])
def test_the_same_comes_out_whatever_the_host_chose(tmp_path, make):
    expected, before = make(tmp_path, "one"), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert make(tmp_path, "other") == expected
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_fast_product_is_judged_as_it_will_be_used(monkeypatch):
    settings = getattr(torch.backends.mkldnn, "matmul", None)
    if not hasattr(settings, "fp32_precision"):
        pytest.skip("this torch has no setting for oneDNN")

    def obedient(left, right_t, *others):
        if settings.fp32_precision == "ieee":
            return left @ right_t.t()
        return (left.bfloat16() @ right_t.bfloat16().t()).float()

    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", obedient, raising=False)
    products._linear.cache_clear()
    torch.set_float32_matmul_precision("medium")
    try:
        assert products._linear() is obedient
    finally:
        torch.set_float32_matmul_precision(before)
        products._linear.cache_clear()
