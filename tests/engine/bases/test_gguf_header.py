"""The header of a GGUF file: what the gguf library's own writer wrote is read, what is damaged is named and stops at once."""
import hashlib
import struct

import gguf
import numpy as np
import pytest
from wan22_master.engine.bases.gguf_fields import LONGEST_LIST
from wan22_master.engine.bases.gguf_header import open_gguf
from wan22_master.engine.errors import HeaderError
from wan22_master.engine.inspection import inspect
from wan22_master.engine.plans.gguf_map import types_of

ARRAY, UINT8, STRING = 9, 0, 8                     # ggml docs/gguf.md, gguf_metadata_value_type


def write(path, words: int = 3):
    writer = gguf.GGUFWriter(path, "wan")
    writer.add_array("some.list", list(range(words)))
    writer.add_tensor("blocks.0.ffn.0.weight", np.ones((8, 64), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def with_field(path, value: bytes):
    """A GGUF without tensors, of one field `a`: value is its type and what follows."""
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + value)
    return path


def test_metadata_and_tensors_are_read_and_long_lists_left_out(tmp_path):
    header = open_gguf(write(tmp_path / "a.gguf"))
    assert header.metadata == {"general.architecture": "wan", "some.list": [0, 1, 2]}
    assert [(each.name, each.tensor_type.name) for each in header.tensors] == [("blocks.0.ffn.0.weight", "F32")]
    assert "some.list" not in open_gguf(write(tmp_path / "b.gguf", LONGEST_LIST + 1)).metadata


@pytest.mark.parametrize("value", [
    struct.pack("<IIQ", ARRAY, UINT8, 1 << 50),                                # more words than memory
    struct.pack("<IQ", STRING, 1 << 62), struct.pack("<IQ", STRING, (1 << 64) - 1),
    struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 5000,            # lists in lists
    struct.pack("<I", 77),
], ids=["list", "string", "overflow", "nested", "unknown"])
@pytest.mark.parametrize("reader", [open_gguf, inspect, types_of])
def test_a_field_that_no_file_can_hold_is_refused_by_every_reader(tmp_path, reader, value):
    with pytest.raises(HeaderError, match=r"x\.gguf: expected a whole GGUF file, found a damaged header .*download it again"):
        reader(with_field(tmp_path / "x.gguf", value))


@pytest.mark.parametrize("reader", [open_gguf, inspect, types_of])
def test_counts_beyond_any_model_are_refused_before_the_library_believes_them(tmp_path, reader):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 1) + bytes(64))
    with pytest.raises(HeaderError, match=r"x\.gguf: expected at most 200000 tensors, found more"):
        reader(tmp_path / "x.gguf")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(HeaderError, match=r"none\.gguf: expected a GGUF file, found none to read: .*check the path"):
        open_gguf(tmp_path / "none.gguf")


def test_a_version_that_is_not_known_and_two_fields_of_one_name_are_damage(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 4, 0, 0))
    with pytest.raises(HeaderError, match=r"x\.gguf: .*version 4, known are 2 and 3"):
        open_gguf(tmp_path / "x.gguf")
    field = struct.pack("<Q", 1) + b"a" + struct.pack("<II", 4, 7)
    (tmp_path / "y.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + field + field)
    with pytest.raises(HeaderError, match=r"y\.gguf: .*two fields 'a'"):
        open_gguf(tmp_path / "y.gguf")


@pytest.mark.parametrize("alignment", [0, 3, 1 << 31])
def test_an_alignment_that_no_file_has_is_refused(tmp_path, alignment):
    path, field = write(tmp_path / "x.gguf"), b"general.alignment"
    body = path.read_bytes()
    added = struct.pack("<Q", len(field)) + field + struct.pack("<II", 4, alignment)
    path.write_bytes(body[:16] + struct.pack("<Q", 3) + added + body[24:])
    with pytest.raises(HeaderError, match=r"x\.gguf: expected a whole GGUF file, found a damaged header"):
        open_gguf(path)


def test_every_value_is_what_the_library_wrote_and_reads(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "wan")
    for number, add in enumerate((writer.add_uint8, writer.add_int8, writer.add_uint16, writer.add_int16, writer.add_uint32,
                                  writer.add_int32, writer.add_uint64, writer.add_int64, writer.add_float32, writer.add_float64)):
        add(f"n.{number}", 120 + number)
    writer.add_bool("yes", True)
    writer.add_string("text", "grün")
    writer.add_array("words", ["a", "", "ß"])
    writer.add_array("floats", [0.5, -2.0])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "a.gguf").fields.items() if name[:4] != "GGUF"}
    assert open_gguf(tmp_path / "a.gguf").metadata == read


def test_the_hash_is_of_all_before_the_tensors(tmp_path):
    path = write(tmp_path / "a.gguf")
    [tensor] = open_gguf(path).tensors
    assert open_gguf(path).sha256 == hashlib.sha256(path.read_bytes()[:tensor.start]).hexdigest()
    assert tensor.start == gguf.GGUFReader(path).tensors[0].data_offset
