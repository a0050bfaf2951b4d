"""GGUF files as bases: written by the gguf library, read as it decodes them, refused with file and tensor where they are none."""
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from wan22_master.engine.bases import packed
from wan22_master.engine.bases.roles import check_pair, partner, role_of
from wan22_master.engine.bases.source import open_source
from wan22_master.engine.bases.variant import detect
from wan22_master.engine.errors import HeaderError, MergeError, SourceError
from wan22_master.engine.synthetic import Sizes, model_shapes
from wan22_master.quant.formats import BLOCK_TYPES
from wan22_master.tests.engine.gguf_base import TYPES, base, blocks, values, written
from wan22_master.tests.engine.stored_base import read_at_once, saved, wan

ROWS, COLUMNS = 37, 512
Q = "blocks.0.self_attn.q.weight"


def stored_as(name: str, shape: tuple[int, ...] = (ROWS, COLUMNS)) -> tuple[np.ndarray, str]:
    return blocks(name, shape, seed=len(name)), name


@pytest.fixture(scope="module")
def every_type(tmp_path_factory):
    """A file with a weight of each type, and what the library makes of it."""
    weights = {f"blocks.{number}.self_attn.q.weight": stored_as(name) for number, name in enumerate(BLOCK_TYPES)}
    weights["blocks.0.modulation"] = stored_as("Q8_0", (5, 6, 64))            # no loader takes it, but it can be read
    rows = wan()["time_projection.1.weight"].numpy()[:ROWS]
    plain = {f"blocks.{number}.ffn.0.weight": (gguf.quants.quantize(rows, TYPES[name]), name)
             for number, name in enumerate(("F32", "F16", "BF16"))}
    wanted = {key: torch.from_numpy(np.array(values(*each))) for key, each in {**weights, **plain}.items()}
    path = tmp_path_factory.mktemp("gguf") / "wan.gguf"
    return written(path, {**wan(), **weights, **plain}), wanted


@given(st.data())
def test_any_rows_are_those_that_the_gguf_library_decodes(every_type, data):
    path, wanted = every_type
    key = data.draw(st.sampled_from(sorted(wanted)))
    whole, before = wanted[key], packed.PIECE
    ends = sorted(data.draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
    try:
        packed.PIECE = data.draw(st.sampled_from([1, 5 * COLUMNS, before]))    # rows decoded at once
        with open_source(path, allow_lossy=True) as source:
            assert source.spec(key).shape == tuple(whole.shape)
            source.advise(key, tuple(ends))
            out = torch.full((ends[1] - ends[0] + 2, *whole.shape[1:]), torch.nan)
            assert source.read(key, tuple(ends), out[1:-1]).data_ptr() == out[1:-1].data_ptr()
            assert torch.equal(out[1:-1], whole[slice(*ends)])
            assert out[0].isnan().all() and out[-1].isnan().all()
            assert torch.equal(source.read(key), whole)
    finally:
        packed.PIECE = before


def test_threads_read_the_same(every_type):
    path, wanted = every_type
    with open_source(path, allow_lossy=True) as source:
        bands = [(key, (start, start + 4)) for key in wanted if len(wanted[key]) == ROWS for start in range(0, ROWS - 4, 3)]
        for (key, (start, stop)), found in zip(bands, read_at_once(source, bands), strict=True):
            assert torch.equal(found, wanted[key][start:stop])


def test_what_was_lost_is_told_by_type_and_refused_unless_allowed(every_type):
    path, _ = every_type
    with pytest.raises(SourceError, match=r"wan\.gguf: blocks\.0\.self_attn\.q\.weight: expected 16 or 32-bit weights, found Q8_0; "
                                          r"use the bf16 .*allow_quantized_source"):
        open_source(path)
    with open_source(path, allow_lossy=True) as source:
        assert source.lossy == "2 Q8_0, " + ", ".join(f"1 {name}" for name in sorted(set(BLOCK_TYPES) - {"Q8_0"}))
        assert source.formats == {**{f"blocks.{number}.self_attn.q.weight": name for number, name in enumerate(BLOCK_TYPES)},
                                  "blocks.0.modulation": "Q8_0"}
        assert {source.spec(key).dtype for key in source.formats} == {torch.bfloat16}
        assert sum(source.nbytes(key) for key in source.formats) == sum(
            blocks(name, (ROWS, COLUMNS)).nbytes for name in BLOCK_TYPES) + 5 * 6 * 68    # 64 weights of Q8_0 are 68 bytes


def test_without_blocks_it_is_a_full_precision_base_with_its_own_dtypes(tmp_path):
    tensors = base(q="F16", up="BF16")
    with open_source(written(tmp_path / "wan.gguf", tensors, fields={"config": "{}", "some.list": [1], "n": 3})) as source:
        assert source.lossy is None and source.formats == {} and source.left_out == {}
        assert source.metadata == {"general.architecture": "wan", "config": "{}"}
        assert set(source.keys()) == set(wan())
        assert source.spec(Q).dtype == torch.float16 and source.spec("blocks.0.ffn.0.weight").dtype == torch.bfloat16
        assert source.spec("patch_embedding.weight").shape == wan()["patch_embedding.weight"].shape
        assert all(torch.equal(source.read(key), value) for key, value in wan().items() if not isinstance(tensors[key], tuple))
        assert torch.equal(source.read(Q), wan()[Q].half().float())
        assert torch.equal(source.read("blocks.0.ffn.0.weight"), wan()["blocks.0.ffn.0.weight"].bfloat16().float())


def test_identity_changes_with_header_and_the_file_can_be_replaced_while_it_is_open(tmp_path):
    path = written(tmp_path / "wan.gguf", base())
    with open_source(path) as source:
        before = source.identity()
        assert [sorted(file) for file in before["files"]] == [["header_sha256", "mtime_ns", "name", "size"]]
        maps = Path("/proc/self/maps")              # Windows replaces no file that is mapped
        assert not maps.exists() or str(path) not in maps.read_text()
    written(path, base(), fields={"general.name": "x"})
    with open_source(path) as source:
        assert source.identity()["files"][0]["header_sha256"] != before["files"][0]["header_sha256"]


@pytest.mark.parametrize("name", ["wan.gguf", "wan.safetensors"])
@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_it_is_known_by_its_content_and_its_names_are_bare(tmp_path, name, prefix):
    with open_source(written(tmp_path / name, base(q="Q8_0"), prefix=prefix), allow_lossy=True) as source:
        assert set(source.keys()) == set(wan()) and list(source.formats) == [Q] and source.lossy == "Q8_0"


def test_an_original_shape_is_put_back(tmp_path):
    """As city96's tools/convert.py stores what has short rows, for other families."""
    weight, field = wan()["patch_embedding.weight"], "comfy.gguf.orig_shape.patch_embedding.weight"
    tensors = {**base(), "patch_embedding.weight": weight.reshape(-1, 256)}
    with open_source(written(tmp_path / "a.gguf", tensors, fields={field: list(weight.shape)})) as source:
        assert torch.equal(source.read("patch_embedding.weight", (3, 9)), weight[3:9])
    with pytest.raises(HeaderError, match=r"b\.gguf: 'patch_embedding\.weight': expected an original shape of 8192 elements"):
        open_source(written(tmp_path / "b.gguf", tensors, fields={field: [2, 2]}))
    short = {**base(), Q: (gguf.quants.quantize(wan()[Q].numpy().reshape(-1, 256), TYPES["Q8_0"]), "Q8_0")}
    fields = {"comfy.gguf.orig_shape." + Q: [1024, 16]}
    with pytest.raises(SourceError, match=rf"c\.gguf: {Q}: expected rows of whole blocks of 32, found Q8_0"):
        open_source(written(tmp_path / "c.gguf", short, fields=fields), allow_lossy=True)


def test_variant_role_and_pair_are_found_as_of_safetensors(tmp_path):
    tensors = {key: torch.zeros(shape) for key, shape in model_shapes(Sizes(dim=256, ffn=512, blocks=2, rank=4)).items()}
    tensors["blocks.1.ffn.2.weight"] = stored_as("Q4_K", (256, 512))
    names = [f"Wan2.2-T2V-A14B-{word}Noise-Q4_K_M.gguf" for word in ("High", "Low")]
    high, low = (written(tmp_path / name, tensors, fields={"general.name": name}) for name in names)
    assert [role_of(str(path), {}).role for path in (high, low)] == ["high_noise", "low_noise"]
    assert partner(str(high)) == str(low) and partner(str(low)) == str(high)
    with open_source(high, allow_lossy=True) as one, open_source(low, allow_lossy=True) as other:
        check_pair(one, other)
        assert "T2V" in detect(one).title and detect(one).num_layers == 2 and detect(one).ffn_dim == 512
        with pytest.raises(SourceError, match="swapped"):
            check_pair(other, one)
    ranged = written(tmp_path / "x.gguf", tensors, fields={"modelspec.timestep_range": "875,1000"})
    with open_source(ranged, allow_lossy=True) as source:
        assert role_of(source.path, source.metadata).role == "high_noise"


@pytest.mark.parametrize(("architecture", "found"), [("flux", "'flux'"), ("llama", "'llama'")])
def test_another_architecture_is_refused(tmp_path, architecture, found):
    with pytest.raises(SourceError, match=rf"x\.gguf: expected a GGUF of architecture wan, found {found}; choose a GGUF of a Wan"):
        open_source(written(tmp_path / "x.gguf", base(), architecture=architecture))


@pytest.mark.parametrize("architecture", [None, "pig"])
def test_architectures_that_comfyui_gguf_tells_by_names_are_told_by_names(tmp_path, architecture):
    with open_source(written(tmp_path / "x.gguf", base(), architecture=architecture)) as source:
        assert set(source.keys()) == set(wan())
    with pytest.raises(SourceError, match=r"y\.gguf: expected a Wan diffusion model, found .*T5 text encoder"):
        open_source(written(tmp_path / "y.gguf", {"encoder.block.0.layer.0.SelfAttention.k.weight": torch.ones(2, 2)},
                            architecture=architecture))


@pytest.mark.parametrize("name", ["IQ2_XXS", "MXFP4", "TQ1_0", "IQ3_S"])
def test_a_type_that_is_not_decoded_is_named_with_its_tensor(tmp_path, name):
    size, nbytes = gguf.GGML_QUANT_SIZES[TYPES[name]]
    tensors = {**base(), Q: (np.zeros((4, 512 // size * nbytes), dtype=np.uint8), name)}
    with pytest.raises(SourceError, match=rf"x\.gguf: {Q}: expected Q8_0, .*, found {name}, .*choose another GGUF"):
        open_source(written(tmp_path / "x.gguf", tensors), allow_lossy=True)


def test_whole_numbers_and_quantized_vectors_are_refused_by_name(tmp_path):
    with pytest.raises(SourceError, match=rf"x\.gguf: {Q}: expected floating-point weights, found I32"):
        open_source(written(tmp_path / "x.gguf", {**base(), Q: (np.ones((4, 4), dtype=np.int32), "I32")}), allow_lossy=True)
    with pytest.raises(SourceError, match=r"y\.gguf: blocks\.1\.norm3\.weight: expected rows of whole blocks of 32"):
        open_source(written(tmp_path / "y.gguf", {**base(), "blocks.1.norm3.weight": stored_as("Q8_0", (64,))}), allow_lossy=True)


@pytest.mark.parametrize("layer", ["patch_embedding", "vace_patch_embedding", "frame_packer.proj"])
def test_a_weight_of_five_axes_that_llama_cpp_left_out_is_told(tmp_path, layer):
    is_always = layer == "patch_embedding"          # in every Wan model; of others the bias tells that they were there
    tensors = {**base(), **({} if is_always else {f"{layer}.bias": torch.ones(64)})}
    told = rf"x\.gguf: {layer}\.weight: expected 5 axes, found no such tensor; llama\.cpp leaves out.*make the GGUF again"
    with pytest.raises(SourceError, match=told):
        open_source(written(tmp_path / "x.gguf", {key: value for key, value in tensors.items() if key != f"{layer}.weight"}))
    tensors[f"{layer}.weight"] = torch.ones(64, 16, 2, 2)
    with pytest.raises(SourceError, match=rf"y\.gguf: {layer}\.weight: expected 5 axes, found shape \[64, 16, 2, 2\]"):
        open_source(written(tmp_path / "y.gguf", tensors))
    if not is_always:
        del tensors[f"{layer}.weight"], tensors[f"{layer}.bias"]
        open_source(written(tmp_path / "z.gguf", tensors)).close()


def test_a_part_of_a_split_file_and_blocks_of_another_layout_are_refused(tmp_path):
    with pytest.raises(SourceError, match=r"x\.gguf: expected a whole model, found one of 3 parts; .*gguf-split --merge"):
        open_source(written(tmp_path / "x.gguf", base(), fields={"split.count": 3}))
    version = {"general.quantization_version": 3}
    with pytest.raises(SourceError, match=r"y\.gguf: expected quantization version 2, found 3"):
        open_source(written(tmp_path / "y.gguf", base(q="Q8_0"), fields=version), allow_lossy=True)
    open_source(written(tmp_path / "z.gguf", base(), fields=version)).close()


def test_a_file_that_is_cut_anywhere_is_refused_by_name(tmp_path):
    whole = written(tmp_path / "a.gguf", {"head.modulation": torch.ones(1, 2, 64), Q: stored_as("Q4_K", (2, 256))}).read_bytes()
    for length in range(0, len(whole) - 1, 7):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(MergeError, match=r"cut\.gguf: "):
            open_source(tmp_path / "cut.gguf", allow_lossy=True)


def test_a_file_called_gguf_that_is_none_is_told_for_what_it_is(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(HeaderError, match=r"x\.gguf: expected a GGUF file, found one that starts with b'vers' \(a git LFS pointer"):
        open_source(tmp_path / "x.gguf")
    with pytest.raises(HeaderError, match=r"none\.gguf: expected a GGUF file, found none to read: .*check the path"):
        open_source(tmp_path / "none.gguf")


def test_a_folder_called_gguf_is_a_folder(tmp_path):
    (tmp_path / "x.gguf").mkdir()
    saved(tmp_path / "x.gguf" / "wan.safetensors", wan())
    with open_source(tmp_path / "x.gguf") as source:
        assert set(source.keys()) == set(wan())
