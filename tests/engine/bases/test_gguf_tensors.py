"""Where tensors lie: as the gguf library reads it, and headers that lie about it are refused with file and tensor."""
import struct
from math import prod

import gguf
import numpy as np
import pytest
from wan22_master.engine.bases.gguf_header import open_gguf
from wan22_master.engine.bases.gguf_types import TYPES
from wan22_master.engine.errors import HeaderError
from wan22_master.tests.engine.gguf_base import blocks, written

F32, F16, Q8_0 = 0, 1, 8                           # ggml.h, enum ggml_type


def made(path, tensors, size: int | None = None):
    """A GGUF of (name, axes innermost first, type, offset) and as many bytes after the header."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 0)
    for name, axes, number, offset in tensors:
        head += struct.pack("<Q", len(name)) + name.encode() + struct.pack(f"<I{len(axes)}Q", len(axes), *axes)
        head += struct.pack("<IQ", number, offset)
    head += bytes(-len(head) % 32)
    path.write_bytes(head + bytes(size if size is not None else 0))
    return path


def test_the_types_are_those_of_the_gguf_library():
    assert {number: (each.name, (each.elements, each.nbytes)) for number, each in TYPES.items()} == {
        int(kind): (kind.name, sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items() if int(kind) in TYPES}
    newest = max(TYPES)
    assert not [kind for kind in gguf.GGMLQuantizationType if int(kind) <= newest and int(kind) not in TYPES]


def test_names_shapes_and_places_are_as_the_gguf_library_reads_them(tmp_path):
    tensors = {"a": (np.ones((3, 1, 2, 2, 5), dtype=np.float32), "F32"), "b": (blocks("Q6_K", (3, 512)), "Q6_K"),
               "c": (np.ones(7, dtype=np.float16), "F16"), "d": (blocks("IQ4_NL", (2, 3, 64)), "IQ4_NL")}
    path = written(tmp_path / "a.gguf", tensors)
    assert [(each.name, each.tensor_type.name, each.shape, each.start, each.nbytes) for each in open_gguf(path).tensors] == [
        (each.name, each.tensor_type.name, tuple(int(axis) for axis in reversed(each.shape)), each.data_offset, each.n_bytes)
        for each in gguf.GGUFReader(path).tensors]


ONE = ("a.weight", (8,), F32, 0)                   # 32 bytes


@pytest.mark.parametrize(("tensors", "size", "found"), [
    ([("a.weight", (8,), F32, 64)], 96, r"'a\.weight' does not follow the header: expected at"),
    ([ONE, ("b.weight", (8,), F32, 0)], 64, r"'b\.weight' overlaps 'a\.weight': expected at"),
    ([ONE, ("b.weight", (8,), F32, 40)], 96, r"'b\.weight' does not follow 'a\.weight'"),
    ([("a.weight", (16,), F32, 0), ("b.weight", (8,), F32, 32)], 64, r"'b\.weight' overlaps 'a\.weight'"),
    ([("a.weight", (32,), Q8_0, 0), ("b.weight", (8,), F32, 128)], 160, r"'b\.weight' does not follow 'a\.weight'"),
    ([("a.weight", (32,), F32, 0)], 127, r"found one that ends at \d+, within 'a\.weight'"),
    ([("a.weight", (1 << 40,), F32, 0)], 127, r"found one that ends at \d+, within 'a\.weight'"),
    ([("a.weight", (8,), F16, 0)], 64, r"found 32 more after 'a\.weight'"),
    ([("a.weight", (1 << 62, 4), F32, 0)], 64, r"'a\.weight': expected a shape that a file can hold"),
    ([("a.weight", (0, 1 << 40, 1 << 40), F32, 0)], 0, r"'a\.weight': expected a shape that a file can hold"),
    ([("a.weight", (31,), Q8_0, 0)], 64, r"'a\.weight': expected rows of a multiple of 32 for Q8_0, found 31"),
    ([("a.weight", (1,) * 17, F32, 0)], 64, r"'a\.weight' of 17 axes"),
    ([("a.weight", (1,) * 70_000, F32, 0)], 64, r"'a\.weight' of 70000 axes"),
    ([ONE, ONE], 64, r"two tensors 'a\.weight'"),
])
def test_a_tensor_that_lies_is_named_with_its_file(tmp_path, tensors, size, found):
    with pytest.raises(HeaderError, match=rf"x\.gguf: .*{found}.*download it again"):
        open_gguf(made(tmp_path / "x.gguf", tensors, size))


def test_after_a_type_of_unknown_size_only_an_overlap_shows(tmp_path):
    header = open_gguf(made(tmp_path / "x.gguf", [("a", (256,), 99, 0), ("b", (8,), F32, 96)], 128))
    assert [(each.tensor_type.name, each.nbytes) for each in header.tensors] == [("type 99", 0), ("F32", 32)]


def test_tensors_may_be_listed_in_any_order_and_be_empty(tmp_path):
    header = open_gguf(made(tmp_path / "x.gguf", [("b", (8,), F32, 32), ("none", (0, 4), F32, 32), ONE, ("one", (), F32, 64)], 96))
    assert [each.name for each in header.tensors] == ["a.weight", "none", "b", "one"]
    assert [prod(each.shape) for each in header.tensors] == [8, 0, 8, 1]
