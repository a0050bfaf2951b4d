"""GGUF files from disk to disk, read by the gguf library: names, types, shapes, values, fields; the same bytes after every stop."""
import hashlib
import json

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, quants
from wan22_master.engine.errors import PlanError, Stopped, TensorError
from wan22_master.engine.hashes import HashCache
from wan22_master.engine.imatrix_writer import Sum, write_imatrix
from wan22_master.engine.jobs import job as jobs
from wan22_master.engine.jobs import verify
from wan22_master.engine.jobs.plan import plan_recipe
from wan22_master.engine.jobs.run import resume, run
from wan22_master.engine.preview import Preview
from wan22_master.engine.recipes import embedded
from wan22_master.engine.terminal import quality_lines
from wan22_master.quant.gguf import families
from wan22_master.tests.engine import tiny

WIDTH, FFN = 256, 512                              # rows of whole super-blocks
BLOCKS = 4
V = [f"blocks.{n}.{kind}_attn.v.weight" for n in range(BLOCKS) for kind in ("self", "cross")]
DOWN = [f"blocks.{n}.ffn.2.weight" for n in range(BLOCKS)]
BOUND = {"Q8_0": 0.008, "Q6_K": 0.024, "Q5_K": 0.045, "Q4_K": 0.09, "Q3_K": 0.19, "Q2_K": 0.36}   # llama.cpp's, rounded up


def wide(seed: int = 0) -> dict[str, torch.Tensor]:
    """A tiny model twice as wide as tiny's, so that rows hold blocks of 256."""
    draw, found = torch.Generator().manual_seed(seed), {}
    for key, shape in tiny.shapes(BLOCKS, FFN).items():
        sizes = tuple({tiny.DIM: WIDTH, 6 * tiny.DIM: 6 * WIDTH}.get(size, size) for size in shape)
        found[key] = (torch.randn(sizes, generator=draw) * 0.03).to(tiny.dtype_of(key))
    return found


def lora(weights: dict[str, torch.Tensor], seed: int = 7) -> dict[str, torch.Tensor]:
    draw, found = torch.Generator().manual_seed(seed), {}
    for layer in tiny.linears(BLOCKS):
        out, into = weights[f"{layer}.weight"].shape
        found[f"diffusion_model.{layer}.lora_A.weight"] = torch.randn(4, into, generator=draw).bfloat16()
        found[f"diffusion_model.{layer}.lora_B.weight"] = (torch.randn(out, 4, generator=draw) * 2e-3).bfloat16()
    return found


@pytest.fixture
def made(tmp_path):
    """(recipe of formats, merged weights in float64)."""
    weights = wide()
    change = lora(weights)
    base, extra = tiny.save(tmp_path / "base.safetensors", weights), tiny.save(tmp_path / "l.safetensors", change)

    def wish(*formats, **more):
        return tiny.recipe(tmp_path / "out", {"model": base}, [{"files": {"model": extra}}], formats, **more)
    return wish, tiny.merge64(weights, [(change, 1.0)])


def read(path) -> tuple[dict, dict[str, str], dict[str, torch.Tensor]]:
    """(fields, key -> type, key -> float64 values in torch's shape) by the gguf library alone."""
    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    values = {tensor.name: torch.from_numpy(np.array(quants.dequantize(tensor.data, tensor.tensor_type))).double()
              .reshape(tuple(int(size) for size in reversed(tensor.shape))) for tensor in reader.tensors}
    return fields, types, values


def only(folder):
    [path] = folder.iterdir()
    return path


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def test_a_mix_holds_every_tensor_in_its_type_and_near_the_float64_merge(made, tmp_path):
    wish, exact = made
    report = tiny.go(wish("Q4_K_M"), tmp_path / "r")
    fields, types, values = read(only(tmp_path / "out"))
    assert types.keys() == exact.keys()
    for key, merged in exact.items():
        assert values[key].shape == merged.shape, key              # the 5-D patch_embedding among them
        if key in [*V, *DOWN]:
            wanted = "Q6_K"
        elif key.removesuffix(".weight") in tiny.linears(BLOCKS):
            wanted = "Q4_K"
        else:
            is_matrix = merged.dim() == 2
            wanted = "F32" if not is_matrix else "F16" if key == "head.head.weight" else "BF16"   # its source is fp16
        assert types[key] == wanted, key
        limit = BOUND.get(wanted, {"F32": 1e-7, "F16": 2.0 ** -11, "BF16": 2.0 ** -8}.get(wanted))
        assert error(values[key], merged) <= limit, key
    assert (fields["general.architecture"], fields["general.file_type"], fields["general.quantization_version"]) == ("wan", 15, 2)
    assert fields["general.name"] == "mix" and "/" not in json.loads(fields[embedded.ENTRY])["recipe"]["experts"]["model"]
    [out] = report["experts"][0]["outputs"]
    shares = {name: [key for key in types if types[key] == name] for name in ("Q4_K", "Q6_K")}
    for name, keys in shares.items():
        assert out["formats"][name]["layers"] == len(keys)
        whole = sum(float((values[key] - exact[key]).square().sum()) for key in keys) / sum(
            float(exact[key].square().sum()) for key in keys)
        assert out["formats"][name]["error"] == pytest.approx(whole ** 0.5, rel=0.1)   # of 16 sampled rows a tensor
    assert out["survival"]["projection"] == pytest.approx(1.0, abs=0.05) and out["survival"]["unchanged"] is None


@pytest.mark.parametrize(("name", "stored"), [("BF16", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32)])
def test_a_plain_gguf_holds_the_merge_rounded_once(made, tmp_path, name, stored):
    wish, exact = made
    tiny.go(wish(name), tmp_path / "r")
    _, types, values = read(only(tmp_path / "out"))
    for key, merged in exact.items():
        if name == "F32" or merged.dim() != 2:
            assert types[key] == "F32" and torch.allclose(values[key], merged, rtol=1e-6, atol=1e-9)   # float32 sums of rank 4
        else:
            assert types[key] == name
            assert error(values[key], merged) <= error(merged.to(stored).double(), merged) * 1.01


def test_types_that_do_not_fit_the_columns_fall_back_and_are_told(tmp_path):
    base = tiny.save(tmp_path / "base.safetensors", tiny.base())   # 128 and 320 columns
    report = tiny.go(tiny.recipe(tmp_path / "out", {"model": base}, formats=["Q4_K_M"]), tmp_path / "r")
    _, types, _ = read(only(tmp_path / "out"))
    assert types["blocks.0.self_attn.q.weight"] == "Q5_0" and types["blocks.0.self_attn.v.weight"] == "Q8_0"
    assert any("layers of 128 columns cannot be Q4_K and become Q5_0" in line for line in report["notices"])


def test_a_plan_decides_layer_by_layer(made, tmp_path):
    wish, _ = made
    layers = dict.fromkeys(tiny.linears(BLOCKS), "Q5_K") | {"blocks.0.ffn.0": "keep", "blocks.1.ffn.0": "IQ4_XS"}
    tiny.go(wish({"format": "Q5_K", "plan": "mine", "layers": {"model": layers}}), tmp_path / "r")
    _, types, _ = read(only(tmp_path / "out"))
    assert {key.removesuffix(".weight"): types[key] for key in types if key.removesuffix(".weight") in layers} == {
        **layers, "blocks.0.ffn.0": "BF16"}


@pytest.mark.parametrize("after", [3, 40, 75])
def test_a_stopped_file_goes_on_to_the_same_bytes(made, tmp_path, after):
    wish, _ = made
    tiny.go(wish("Q4_K_M", save={"folder": str(tmp_path / "whole")}), tmp_path / "r1")
    asked = iter(range(10**9))
    with pytest.raises(Stopped):
        tiny.go(wish("Q4_K_M"), tmp_path / "r2", should_stop=lambda: next(asked) > after)
    [part] = [path for path in (tmp_path / "out").iterdir() if path.name.endswith(".gguf.part")]
    resume(str(part), reports=tmp_path / "r2")
    assert only(tmp_path / "out").read_bytes() == only(tmp_path / "whole").read_bytes()


@pytest.mark.skipif(not families.has_numba(), reason="numba is not installed")
def test_both_encoders_write_the_same_file_and_a_job_keeps_its_own(made, tmp_path, monkeypatch):
    wish, _ = made
    tiny.go(wish("Q4_K_M", save={"folder": str(tmp_path / "numba")}), tmp_path / "r1")
    asked = iter(range(10**9))
    with pytest.raises(Stopped):
        tiny.go(wish("Q4_K_M"), tmp_path / "r2", should_stop=lambda: next(asked) > 40)
    [part] = [path for path in (tmp_path / "out").iterdir() if path.name.endswith(".part")]
    assert jobs.load(str(part).removesuffix(".part")).output["encoder"] == "numba"
    monkeypatch.setattr(families, "has_numba", lambda: False)
    with pytest.raises(PlanError, match="begun with the encoder numba, and here is torch; install numba again"):
        resume(str(part), reports=tmp_path / "r2")
    tiny.go(wish("Q4_K_M", save={"folder": str(tmp_path / "torch")}), tmp_path / "r3")
    assert only(tmp_path / "torch").read_bytes() == only(tmp_path / "numba").read_bytes()


@pytest.mark.parametrize("name", ["Q4_K_M", "Q2_K", "Q5_1", "IQ4_XS"])
def test_the_preview_holds_what_the_file_decodes_to(made, tmp_path, name):
    wish, _ = made
    tiny.go(wish(name), tmp_path / "r")
    _, _, values = read(only(tmp_path / "out"))
    plan = plan_recipe(wish(), tmp_path / "r")
    preview = Preview(plan, "model", output=wish(name).outputs[0])
    for key in ("blocks.0.self_attn.v.weight", "blocks.3.ffn.2.weight", "patch_embedding.weight", "head.head.weight"):
        assert torch.equal(preview.merged(key).double(), values[key])


def test_a_byte_that_changed_on_disk_is_found_before_the_file_gets_its_name(made, tmp_path, monkeypatch):
    wish, _ = made
    whole = verify.check

    def spoil(part, out, expert, samples):
        spec, start = out.layout.tensors["blocks.1.ffn.2.weight"]
        with open(part, "r+b") as file:
            file.seek(start)
            file.write(bytes(byte ^ 0x55 for byte in out.layout.header[:1] * spec.nbytes))
        return whole(part, out, expert, samples)

    monkeypatch.setattr(verify, "check", spoil)
    with pytest.raises(TensorError, match=r"blocks\.1\.ffn\.2\.weight"):
        tiny.go(wish("Q4_K_M"), tmp_path / "r")
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix == ".gguf"]


@pytest.mark.parametrize("change", ["type", "place", "name"])
def test_a_header_that_says_something_else_is_found(made, tmp_path, monkeypatch, change):
    wish, _ = made
    whole = verify.check

    def spoil(part, out, expert, samples):
        key = b"blocks.1.ffn.2.weight"
        at = out.layout.header.index(key)
        where = {"name": at, "type": at + len(key) + 4 + 16, "place": at + len(key) + 4 + 16 + 4}[change]
        with open(part, "r+b") as file:
            file.seek(where)
            file.write({"name": b"B", "type": bytes([GGMLQuantizationType.F32]), "place": b"\x20"}[change])
        return whole(part, out, expert, samples)

    monkeypatch.setattr(verify, "check", spoil)
    with pytest.raises((TensorError, ValueError)):
        tiny.go(wish("Q6_K"), tmp_path / "r")
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix == ".gguf"]


def test_importances_lower_the_weighted_error(made, tmp_path):
    wish, exact = made
    draw = torch.Generator().manual_seed(1)
    weights = {f"{layer}.weight": torch.randn(exact[f"{layer}.weight"].shape[1], generator=draw).exp() ** 2
               for layer in tiny.linears(BLOCKS)}
    write_imatrix(tmp_path / "w.gguf", {key: Sum(10.0 * each, 10) for key, each in weights.items()})
    found = {}
    for name, more in (("plain", {}), ("weighed", {"imatrix": {"model": str(tmp_path / "w.gguf")}})):
        tiny.go(wish({"format": "Q3_K_S", **more}, save={"folder": str(tmp_path / name)}), tmp_path / "r")
        _, _, values = read(only(tmp_path / name))
        found[name] = sum(float(((values[key] - exact[key]).square() * weights[key].double()).sum()) for key in weights)
    assert found["weighed"] < 0.9 * found["plain"]


def test_three_containers_come_from_one_reading(made, tmp_path):
    wish, exact = made
    with plan_recipe(wish("Q4_K_M", "nvfp4", "float8_e4m3fn"), tmp_path / "r") as plan:
        reads = []
        source = plan.experts[0].source
        read_rows = source.read
        source.read = lambda key, rows=None, out=None: (reads.append((key, rows)), read_rows(key, rows, out))[1]
        run(plan, reports=tmp_path / "r")
    assert len(reads) == len(set(reads)) and {key for key, _ in reads} == exact.keys()
    assert sorted(path.suffix for path in (tmp_path / "out").iterdir()) == [".gguf", ".safetensors", ".safetensors"]


def test_a_hash_of_the_base_that_comes_later_moves_no_tensor_and_keeps_what_is_finished(made, tmp_path):
    wish, _ = made
    asked = iter(range(10**9))
    with pytest.raises(Stopped):
        tiny.go(wish("Q4_K_M"), tmp_path / "r", should_stop=lambda: next(asked) > 40)
    [part] = [path for path in (tmp_path / "out").iterdir() if path.name.endswith(".part")]
    HashCache(tmp_path / "r").sha256(str(tmp_path / "base.safetensors"))   # somebody asks for it meanwhile
    report = resume(str(part), reports=tmp_path / "r")
    fields, _, _ = read(only(tmp_path / "out"))
    assert report["experts"][0]["outputs"][0]["resumed"] > 20
    assert len(json.loads(fields[embedded.ENTRY])["base"]["sha256"]) == 64


def test_two_outputs_of_one_job_say_the_same_of_their_base(made, tmp_path):
    wish, _ = made
    HashCache(tmp_path / "r").sha256(str(tmp_path / "base.safetensors"))
    tiny.go(wish("Q8_0", "Q5_0"), tmp_path / "r")
    told = [json.loads(read(path)[0][embedded.ENTRY])["base"] for path in (tmp_path / "out").iterdir()]
    assert len(told) == 2 and told[0] == told[1] and len(told[0]["sha256"]) == 64


def test_what_a_gguf_cannot_use_is_told(made, tmp_path):
    wish, _ = made
    some = {"blocks.0.ffn.2.weight": Sum(torch.ones(FFN), 1)}
    write_imatrix(tmp_path / "w.gguf", some)
    more = {"imatrix": {"model": str(tmp_path / "w.gguf")}}
    scaled = {"format": "Q6_K", "input_amax": {"model": {"blocks.0.ffn.2": 3.0}}, **more}
    with plan_recipe(wish(scaled, {"format": "Q8_0", **more}), tmp_path / "r") as plan:
        said = "\n".join(plan.notices)
    assert "Q6_K: input scales change nothing in a GGUF" in said
    assert "39 of 40 layers are not in it" in said
    assert "w.gguf: not used: no layer of Q8_0 is of a format that weighs columns" in said


def test_an_imatrix_that_is_missing_or_another_than_the_recipe_s_is_refused(made, tmp_path):
    wish, _ = made
    write_imatrix(tmp_path / "w.gguf", {"blocks.0.ffn.2.weight": Sum(torch.ones(FFN), 1)})
    asked = {"format": "Q6_K", "imatrix": {"model": str(tmp_path / "w.gguf")}}
    with pytest.raises(PlanError, match=r"w\.gguf: expected the imatrix of SHA-256 0000"):
        tiny.go(wish({**asked, "imatrix_sha256": {"model": "0" * 64}}), tmp_path / "r")
    (tmp_path / "w.gguf").unlink()
    with pytest.raises(PlanError, match=r"w\.gguf: expected an imatrix file, found none"):
        tiny.go(wish(asked), tmp_path / "r")


def test_the_recipe_in_the_file_names_the_imatrix_by_its_hash(made, tmp_path):
    wish, _ = made
    write_imatrix(tmp_path / "w.gguf", {"blocks.0.ffn.2.weight": Sum(torch.ones(FFN), 1)})
    digest = hashlib.sha256((tmp_path / "w.gguf").read_bytes()).hexdigest()
    for names, said in ((True, "w.gguf"), (False, f"sha256:{digest}")):
        folder = tmp_path / f"named {names}"
        tiny.go(wish({"format": "Q6_K", "imatrix": {"model": str(tmp_path / "w.gguf")}},
                     save={"folder": str(folder), "lora_names": names}), tmp_path / "r")
        told = embedded.read(only(folder)).recipe.outputs[0]
        assert (told.imatrix, told.imatrix_sha256) == ({"model": said}, {"model": digest})


def test_weights_too_small_for_a_type_are_told(tmp_path):
    weights = wide()
    weights["blocks.0.ffn.0.weight"] = (weights["blocks.0.ffn.0.weight"].float() * 1e-4).bfloat16()   # 3e-6: scales under 2**-24
    base = tiny.save(tmp_path / "base.safetensors", weights)
    report = tiny.go(tiny.recipe(tmp_path / "out", {"model": base}, formats=["Q6_K"]), tmp_path / "r")
    [out] = report["experts"][0]["outputs"]
    assert out["lost"] == ["blocks.0.ffn.0"] and any("1 layers lost more than half" in line for line in quality_lines(out))
