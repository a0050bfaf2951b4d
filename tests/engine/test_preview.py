import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file
from wan22_master.engine.errors import SourceError, Stopped, TensorError
from wan22_master.engine.jobs import carry
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.engine.preview import Preview, settle
from wan22_master.engine.recipes.recipe import Output
from wan22_master.quant.readback import decode_rows
from wan22_master.tests.engine import tiny

KEY = "blocks.0.ffn.0.weight"


@pytest.fixture
def merge(tmp_path):
    """(experts, LoRA entries) of a pair with two LoRAs."""
    experts = tiny.write_pair(tmp_path / "base")
    loras = [tiny.save(tmp_path / f"{name}.safetensors", tiny.lora(seed, **more))
             for name, seed, more in (("one", 1, {}), ("two", 2, {"rank": 8, "alpha": 2.0, "size": 2e-3}))]
    return experts, [{"files": dict.fromkeys(experts, path), "strength": dict.fromkeys(experts, 0.7)} for path in loras]


def preview_of(tmp_path, experts, loras, role="high_noise", *, method="addition", **options) -> Preview:
    wish = tiny.recipe(tmp_path / "out", experts, passes=[{"loras": loras, "method": method}])
    return Preview(plan_recipe(wish, tmp_path / "reports"), role, **options)


@pytest.mark.parametrize("method", ["addition", "classic"])
@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
def test_every_tensor_is_the_saved_one_bit_for_bit(tmp_path, merge, method, name):
    wish = tiny.recipe(tmp_path / "out", merge[0], passes=[{"loras": merge[1], "method": method}], formats=[name])
    report = tiny.go(wish, tmp_path / "reports")
    for expert in report["experts"]:
        saved, preview = load_file(expert["outputs"][0]["path"]), preview_of(tmp_path, *merge, expert["role"], method=method,
                                                                             output=Output(name))
        base = load_file(merge[0][expert["role"]])
        for key, tensor in saved.items():
            assert tiny.same_bits(preview.merged(key), tensor.float())
            assert key in preview.keys or tiny.same_bits(tensor, base[key])   # what is not named needs no patch


def test_adaptive_with_the_limiter_acting_is_the_saved_one_on_any_number_of_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "DIM", 512)                                  # where MKL shares a product of factors out
    load, seen = carry.load_change, []

    def watched(key, *more):
        change = load(key, *more)
        seen.append((key, torch.get_num_threads(), [term.adaptive for term in change.terms]))
        return change

    monkeypatch.setattr(carry, "load_change", watched)
    layers, model = tiny.linears(1)[:3], tiny.save(tmp_path / "m.safetensors", tiny.base(blocks=1))
    shared, loras = tiny.lora(99, layers, rank=7, size=1e-2), []
    for number in range(10):
        tensors = tiny.lora(number, layers, rank=7, size=1e-2)
        tensors = {key: tensor + shared[key] / 2 for key, tensor in tensors.items()}
        loras.append(tiny.save(tmp_path / f"{number}.safetensors", tensors))
    asked = [{"loras": [{"files": {"model": path}} for path in loras], "method": "adaptive"}]
    wish, before = tiny.recipe(tmp_path / "out", {"model": model}, passes=asked, formats=["fp32"]), torch.get_num_threads()
    report = tiny.go(wish, tmp_path / "reports")["experts"][0]
    saved = load_file(report["outputs"][0]["path"])
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            plan = plan_recipe(wish, tmp_path / "reports")
            settle(plan, "model", reports=tmp_path / "reports")
            preview = Preview(plan, "model", output=Output("fp32"))
            for key in (f"{layer}.weight" for layer in layers):
                assert torch.equal(preview.merged(key), saved[key]) and torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert len(seen) == 4 * len(layers)
    for key, threads, told in seen:
        assert threads == 1 and told == next(first for each, _, first in seen if each == key)   # every norm and factor to the bit
        assert all(one["limits"]["new"]["factor"] < 1 and one["limits"]["new"]["exact"] for one in told)


def test_keys_are_what_the_merge_changes_and_what_is_saved_in_another_dtype(tmp_path, merge):
    touched = {f"{layer}.weight" for layer in tiny.linears()}
    assert set(preview_of(tmp_path, *merge).keys) == touched | {"head.head.weight"}   # stored in float16
    assert set(preview_of(tmp_path, merge[0], []).keys) == {"head.head.weight"}


def test_a_mixed_base_is_previewed_as_it_is_saved(tmp_path, merge):
    other = {role: [tiny.save(tmp_path / f"other_{role}.safetensors", tiny.base(9))] for role in tiny.PAIR}
    asked = {"passes": [{"loras": merge[1], "method": "addition"}],
             "mix": {"method": "weighted_sum", "files": other, "strength": dict.fromkeys(tiny.PAIR, 0.3)}}
    wish = tiny.recipe(tmp_path / "out", merge[0], **asked)
    saved = load_file(tiny.go(wish, tmp_path / "reports")["experts"][1]["outputs"][0]["path"])
    preview = Preview(plan_recipe(wish, tmp_path / "reports"), "low_noise")
    assert set(preview.keys) == set(saved)
    assert all(tiny.same_bits(preview.merged(key), tensor.float()) for key, tensor in saved.items())
    os.utime(other["low_noise"][0], ns=(1, 1))
    with pytest.raises(SourceError, match=r"other_low_noise.safetensors: expected as it was"):
        preview.merged(KEY)


def test_the_caller_may_change_what_it_got(tmp_path, merge):
    for budget, name in ((0, "bf16"), (1 << 30, "bf16"), (1 << 30, "fp32")):
        preview = preview_of(tmp_path, *merge, budget=budget, output=Output(name))
        first = preview.merged(KEY)
        want = first.clone()
        first.zero_()
        second = preview.merged(KEY)
        assert torch.equal(second, want)
        second.add_(1.0)
        assert torch.equal(preview.merged(KEY), want)


def test_a_kept_tensor_is_not_read_again_and_the_budget_bounds_them(tmp_path, merge, monkeypatch):
    preview, read = preview_of(tmp_path, *merge, budget=tiny.DIM * tiny.FFN * 2), []
    source = preview.expert.source
    original = source.read
    monkeypatch.setattr(source, "read", lambda key, *more, **named: (read.append(key), original(key, *more, **named))[1])
    for key in (KEY, "blocks.0.ffn.2.weight", KEY, KEY):
        preview.merged(key)
    assert set(read) == {KEY, "blocks.0.ffn.2.weight"} and read.count(KEY) == read.count("blocks.0.ffn.2.weight")
    assert preview.kept.nbytes == tiny.DIM * tiny.FFN * 2


def test_bytes_read_at_each_use_shrink_with_card_and_budget(tmp_path, merge):
    preview = preview_of(tmp_path, *merge)
    total = sum(preview.expert.specs[key].numel * 2 for key in preview.keys)
    loras = sum(os.path.getsize(path) for path in {next(iter(lora["files"].values())) for lora in merge[1]})
    assert total < preview.read_bytes(0) < total + loras
    assert preview.read_bytes(total) == 0 == preview_of(tmp_path, *merge, budget=total).read_bytes(0)
    assert preview.read_bytes(total // 2) == pytest.approx(preview.read_bytes(0) / 2, rel=0.01)


def test_threads_get_each_their_own_tensor_one_at_a_time(tmp_path, merge, monkeypatch):
    preview = preview_of(tmp_path, *merge, budget=1 << 16)
    want = {key: preview.merged(key) for key in preview.keys}
    compute, inside, most = preview._compute, [], []

    def watched(key):
        inside.append(key)
        most.append(len(inside))
        time.sleep(0.001)
        inside.remove(key)
        return compute(key)

    monkeypatch.setattr(preview, "_compute", watched)
    with ThreadPoolExecutor(8) as pool:
        got = [(key, pool.submit(preview.merged, key)) for key in preview.keys * 3]
        assert all(torch.equal(each.result(), want[key]) for key, each in got)
    assert max(most) == 1                          # each one has all the processor's threads


def test_a_file_that_changed_since_is_refused(tmp_path, merge):
    preview = preview_of(tmp_path, *merge)
    preview.merged(KEY)
    os.utime(merge[0]["high_noise"], ns=(1, 1))
    with pytest.raises(SourceError, match=r"tiny_high_noise.safetensors: expected as it was when the preview was made"):
        preview.merged(KEY)


def test_a_stop_is_stopped_and_the_next_call_is_right(tmp_path, merge):
    wishes = [False, True]
    preview = preview_of(tmp_path, *merge, should_stop=lambda: wishes.pop() if wishes else False)
    with pytest.raises(Stopped):
        preview.merged(KEY)
    assert torch.equal(preview.merged(KEY), preview_of(tmp_path, *merge).merged(KEY))


def test_a_tensor_that_cannot_be_merged_names_itself(tmp_path, merge):
    weights = load_file(merge[0]["high_noise"])
    weights[KEY][0, 0] = float("nan")
    tiny.save(tmp_path / "base" / "tiny_high_noise.safetensors", weights)
    with pytest.raises(TensorError, match=r"blocks\.0\.ffn\.0\.weight: read failed"):
        preview_of(tmp_path, *merge).merged(KEY)


@pytest.mark.parametrize("lossy", [False, True])
@pytest.mark.parametrize("asked", [{"format": "float8_e4m3fn"}, {"format": "nvfp4"}, {"format": "mxfp8", "kept_dtype": "fp16"},
                                   {"format": "int8_tensorwise", "int8_scaling": "row", "layers": {
                                       "high_noise": {"blocks.0.ffn.2": "nvfp4", "blocks.1.self_attn.v": "keep"}}}], ids=str)
def test_a_quantized_file_decodes_to_what_was_previewed(tmp_path, merge, asked, lossy):
    if lossy:                                      # codes of what was merged are then rounded stochastically
        for path in merge[0].values():
            weights = load_file(path)
            save_file(weights | {KEY: weights[KEY].to(torch.float8_e4m3fn)}, path)
    more = {"allow_quantized_source": lossy}
    wish = tiny.recipe(tmp_path / "out", merge[0], passes=[{"loras": merge[1]}], formats=[asked], **more)
    saved = load_file(tiny.go(wish, tmp_path / "reports")["experts"][0]["outputs"][0]["path"])
    plan = plan_recipe(tiny.recipe(tmp_path / "out", merge[0], passes=[{"loras": merge[1]}], **more), tmp_path / "reports")
    preview = Preview(plan, "high_noise", output=Output(**asked), budget=1 << 30)
    codes = {f"{layer}.weight" for layer in tiny.linears()} - ({"blocks.1.self_attn.v.weight"} if "layers" in asked else set())
    assert codes <= set(preview.keys)
    for key, spec in preview.expert.specs.items():
        form = preview.forms.of(key, spec)
        parts = {suffix: saved[key + suffix] for suffix in form.outputs(spec.shape)}
        rows = list(range(spec.shape[0])) if spec.shape else []
        decoded = decode_rows(form, spec.shape, rows, lambda suffix, first, stop, parts=parts: parts[suffix][first:stop]
                              if first is not None and parts[suffix].dim() else parts[suffix])
        for _ in range(2):                         # computed, and kept as stored
            assert torch.equal(preview.merged(key).reshape(decoded.shape), decoded), key   # none of these is rotated: same bits


def test_files_are_closed_with_the_last_holder(tmp_path, merge):
    preview = preview_of(tmp_path, *merge)
    lora = preview.plan.loras[0]
    preview.merged(KEY)
    assert lora.file._fd >= 0
    del preview
    assert lora.file._fd == -1
