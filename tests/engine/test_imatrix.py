"""Claims about engine/imatrix*.py. Oracles: the gguf library, and bytes packed by hand as llama.cpp packs them."""
import struct

import gguf
import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from wan22_master.engine.errors import HeaderError, MergeError, PlanError, SourceError
from wan22_master.engine.imatrix import check_imatrix, read_imatrix
from wan22_master.engine.imatrix_legacy import Damage, parse
from wan22_master.engine.imatrix_writer import Sum, write_imatrix
from wan22_master.engine.specs import TensorSpec

Q, DOWN = "blocks.0.self_attn.q.weight", "blocks.0.ffn.2.weight"
SUMS = {Q: Sum(torch.tensor([3.0, 0.0, 6.5, 12.0]), 5), DOWN: Sum(torch.linspace(0.0, 7e5, 8, dtype=torch.float64), 1500)}
MEANS = {key: (each.squares / each.count).float() for key, each in SUMS.items()}
SPECS = {Q: TensorSpec((16, 4), torch.bfloat16), DOWN: TensorSpec((4, 8), torch.bfloat16)}


def legacy(entries: list[tuple[bytes, int, list[float]]], calls: int = 3, dataset: bytes | None = b"text") -> bytes:
    """A .dat as save_imatrix_legacy writes it: values are mean times calls. dataset: None ends the file after the entries."""
    parts = [struct.pack("<i", len(entries))]
    for name, ncall, values in entries:
        parts += [struct.pack("<i", len(name)), name, struct.pack(f"<ii{len(values)}f", ncall, len(values), *values)]
    if dataset is not None:
        parts += [struct.pack("<ii", calls, len(dataset)), dataset]
    return b"".join(parts)


def by_the_library(path, tensors: dict[str, list], kind: str | None = "imatrix"):
    writer = gguf.GGUFWriter(str(path), "wan")
    if kind:
        writer.add_type(kind)
    for name, values in tensors.items():
        writer.add_tensor(name, numpy.array(values, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key].dtype == torch.float32
        torch.testing.assert_close(found[key], values, rtol=3e-7, atol=0)  # two roundings to 24 bits: sum or product, and quotient


@pytest.mark.parametrize("name", ["it.gguf", "it.dat", "it.imatrix"])
def test_what_is_written_is_read_as_means(tmp_path, name):
    path = write_imatrix(tmp_path / name, SUMS, datasets=["a cat"])
    same(read_imatrix(path), {DOWN: MEANS[DOWN], Q: MEANS[Q]})
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_the_gguf_holds_what_llama_cpps_quantizer_looks_for(tmp_path):
    reader = gguf.GGUFReader(write_imatrix(tmp_path / "it.gguf", SUMS, datasets=["cats", "dogs"]))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.type"] == "imatrix" and fields["imatrix.datasets"] == ["cats", "dogs"]
    assert (fields["imatrix.chunk_count"], fields["imatrix.chunk_size"]) == (3, 512)      # 1500 inputs, rounded up
    assert reader.fields["imatrix.chunk_count"].types == [gguf.GGUFValueType.UINT32]
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert list(tensors) == [f"{key}{end}" for key in sorted(SUMS) for end in (".in_sum2", ".counts")]
    assert {tensor.tensor_type.name for tensor in tensors.values()} == {"F32"}
    assert [tensors[f"{Q}.in_sum2"].shape.tolist(), tensors[f"{Q}.counts"].shape.tolist()] == [[4, 1], [1, 1]]
    assert tensors[f"{Q}.in_sum2"].data.ravel().tolist() == [3.0, 0.0, 6.5, 12.0] and tensors[f"{Q}.counts"].data.item() == 5


def test_a_gguf_without_a_data_set_has_the_field_all_the_same(tmp_path):
    assert "imatrix.datasets" in gguf.GGUFReader(write_imatrix(tmp_path / "it.gguf", SUMS)).fields


def test_the_older_file_has_the_bytes_that_llama_cpp_writes(tmp_path):
    path = write_imatrix(tmp_path / "it.dat", {Q: Sum(torch.tensor([3.0, 4.0]), 2), DOWN: Sum(torch.tensor([1030.0]), 1030)},
                         datasets=["cats", "dogs"])
    with open(path, "rb") as file:                 # 1030 inputs are three chunks of 512
        assert file.read() == legacy([(DOWN.encode(), 3, [3.0]), (Q.encode(), 1, [1.5, 2.0])], dataset=b"dogs")


def test_the_older_file_is_read_with_and_without_its_end(tmp_path):
    path, entries = tmp_path / "it.dat", [(Q.encode(), 4, [2.0, 4.0, 0.0]), (DOWN.encode(), 0, [5.0])]
    for body in (legacy(entries), legacy(entries, dataset=None), legacy(entries, dataset=b"")):
        path.write_bytes(body)
        same(read_imatrix(path), {Q: torch.tensor([0.5, 1.0, 0.0]), DOWN: torch.tensor([5.0])})


def test_a_file_of_the_tool_without_architecture_or_with_first_moments_is_read(tmp_path):
    path = by_the_library(tmp_path / "it.gguf", {f"{Q}.in_sum2": [[8.0, 2.0]], f"{Q}.counts": [[4.0]], f"{Q}.in_sum": [[1.0, 1.0]]})
    same(read_imatrix(path), {Q: torch.tensor([2.0, 0.5])})


def test_a_layer_that_had_no_input_counts_all_columns_alike(tmp_path):
    path = by_the_library(tmp_path / "it.gguf", {f"{Q}.in_sum2": [[0.0, 0.0]], f"{Q}.counts": [[0.0]]})
    same(read_imatrix(path), {Q: torch.ones(2)})


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "model."])
@pytest.mark.parametrize("end", ["", ".weight"])
def test_names_may_have_a_prefix_and_lack_weight(tmp_path, prefix, end):
    (tmp_path / "it.dat").write_bytes(legacy([(f"{prefix}blocks.0.ffn.2{end}".encode(), 1, [1.0])]))
    assert list(read_imatrix(tmp_path / "it.dat")) == [DOWN]


def test_one_layer_under_two_names_is_an_error(tmp_path):
    (tmp_path / "it.dat").write_bytes(legacy([(DOWN.encode(), 1, [1.0]), (b"model." + DOWN.encode(), 1, [1.0])]))
    with pytest.raises(HeaderError, match=r"it\.dat: blocks\.0\.ffn\.2\.weight: expected one entry"):
        read_imatrix(tmp_path / "it.dat")


@pytest.mark.parametrize(("tensors", "said"), [
    ({f"{Q}.in_sum2": [[1.0]]}, r"self_attn\.q\.weight: expected one number in .*counts, found 0"),
    ({f"{Q}.in_sum2": [[1.0], [2.0]], f"{Q}.counts": [[1.0], [1.0]]}, "expected one number in .* found 2"),
    ({f"{Q}.in_sum2": [[1.0]], f"{Q}.counts": [[-2.0]]}, r"counts: expected a count, found -2\.0"),
    ({f"{Q}.in_sum2": [[1.0]], f"{Q}.counts": [[float("nan")]]}, "expected a count, found nan"),
])
def test_a_gguf_whose_entries_make_no_sense_is_an_error(tmp_path, tensors, said):
    with pytest.raises(HeaderError, match=rf"it\.gguf: .*{said}"):
        read_imatrix(by_the_library(tmp_path / "it.gguf", tensors))


@pytest.mark.parametrize("kind", [None, "model"])
def test_a_gguf_of_something_else_is_an_error(tmp_path, kind):
    with pytest.raises(SourceError, match=r"it\.gguf: expected a GGUF of general.type imatrix"):
        read_imatrix(by_the_library(tmp_path / "it.gguf", {Q: [1.0]}, kind))


def test_a_gguf_cut_anywhere_is_an_error_that_names_it(tmp_path):
    whole = by_the_library(tmp_path / "it.gguf", {f"{Q}.in_sum2": [[8.0, 2.0]], f"{Q}.counts": [[4.0]]})
    body, path = whole.read_bytes(), tmp_path / "cut"
    last = len(body) - 28                          # behind the only number of the last tensor lies padding to 32 bytes
    for end in (0, 3, 4, 30, 60, 120, 200, last - 1):
        path.write_bytes(body[:end])
        with pytest.raises((HeaderError, SourceError), match="cut: "):
            read_imatrix(path)


def test_the_older_file_cut_anywhere_is_an_error_that_says_where():
    body = legacy([(Q.encode(), 4, [2.0, 4.0]), (DOWN.encode(), 1, [5.0])])
    whole = len(legacy([(Q.encode(), 4, [2.0, 4.0]), (DOWN.encode(), 1, [5.0])], dataset=None))
    for end in range(len(body)):
        if end not in (whole, whole + 4):          # files without the data set are older ones
            with pytest.raises(Damage, match="expected"):
                parse(body[:end])


@pytest.mark.parametrize(("body", "said"), [
    (struct.pack("<i", 0), "the number of entries from 1"),
    (struct.pack("<ii", 1, -5), "the length of the name of entry 1 from 1"),
    (struct.pack("<ii", 1, 5000), "the length of the name of entry 1 from 1 to 4096, found 5000"),
    (struct.pack("<ii", 1, 2) + b"\xff\xfe", "the name of entry 1 in UTF-8"),
    (struct.pack("<ii", 1, 1) + b"q" + struct.pack("<ii", 1, 2**31 - 1), "8589934588 bytes of the values of q"),
    (struct.pack("<ii", 1, 1) + b"q" + struct.pack("<i", -1), "the calls of q from 0"),
    (legacy([(b"q", 1, [1.0]), (b"q", 1, [1.0])]), "one entry q, found two"),
    (legacy([(b"q", 1, [1.0])]) + b"more", "the end at byte"),
    (b"{\"layers\": []}", "number of entries|of entry"),
])
def test_absurd_bytes_are_an_error_that_names_file_and_entry(tmp_path, body, said):
    (tmp_path / "it.dat").write_bytes(body)
    with pytest.raises(HeaderError, match=rf"it\.dat: expected .*{said}.*this is no importance matrix"):
        read_imatrix(tmp_path / "it.dat")


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_parse_or_tell(body):
    try:
        parse(body)
    except Damage as told:
        assert str(told).startswith("expected")


def test_a_file_too_large_and_one_that_is_not_there_are_errors(tmp_path, monkeypatch):
    monkeypatch.setattr("wan22_master.engine.imatrix.LARGEST", 10)
    (tmp_path / "it.dat").write_bytes(legacy([(b"q", 1, [1.0])]))
    with pytest.raises(SourceError, match="of at most 10 bytes"):
        read_imatrix(tmp_path / "it.dat")
    with pytest.raises(MergeError, match="none: cannot be read"):
        read_imatrix(tmp_path / "none")


def test_a_matrix_of_the_model_passes_whole_and_silently():
    taken, told = check_imatrix(MEANS, SPECS, "it.dat")
    assert taken == {key: MEANS[key] for key in SPECS} and told == []


def test_layers_that_only_one_of_them_has_are_counted_and_named():
    other = {"blk.0.attn_q.weight": torch.ones(3)}
    taken, told = check_imatrix({Q: MEANS[Q]} | other, SPECS, "it.dat")
    assert list(taken) == [Q]
    assert told == ["it.dat: 1 of 2 layers are not in it (a calibration leaves out those where weighing does not help) and are not "
                    f"weighed: {DOWN}", "it.dat: 1 of its layers are not weighed here: blk.0.attn_q.weight"]
    with pytest.raises(SourceError, match=r"it\.dat: expected importances of blocks.*found blk\.0\.attn_q"):
        check_imatrix(other, SPECS, "it.dat")


@pytest.mark.parametrize(("values", "said"), [
    ([1.0, 1.0, 1.0], "expected 4 importances, found 3"), ([1.0, -0.5, 1.0, 1.0], r"at least 0, found -0\.5"),
    ([1.0, 1.0, float("nan"), 1.0], "found nan"), ([float("inf")] * 4, "found inf"),
])
def test_importances_that_cannot_be_are_an_error_with_file_and_layer(values, said):
    with pytest.raises(SourceError, match=rf"it\.dat: blocks\.0\.self_attn\.q\.weight: .*{said}"):
        check_imatrix(MEANS | {Q: torch.tensor(values)}, SPECS, "it.dat")


@pytest.mark.parametrize("wrong", [Sum(torch.ones(2), 0), Sum(torch.tensor([1.0, float("nan")]), 1), Sum(torch.tensor([-1.0]), 1),
                                   Sum(torch.tensor([1e39], dtype=torch.float64), 1)])
def test_sums_that_are_none_are_not_written(tmp_path, wrong):
    with pytest.raises(PlanError, match=r"it\.gguf: blocks\.0\.ffn\.2\.weight: expected finite sums"):
        write_imatrix(tmp_path / "it.gguf", SUMS | {DOWN: wrong})
    with pytest.raises(PlanError, match="expected a layer with inputs"):
        write_imatrix(tmp_path / "it.gguf", {})
    assert not list(tmp_path.iterdir())
