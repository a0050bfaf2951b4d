"""What an older torch lacks is missed where it is used, never when the pack is loaded."""
import runpy

import torch
from wan22_master.engine import errors, specs


def test_out_of_memory_is_known_by_its_older_name(monkeypatch):
    monkeypatch.delattr(torch, "OutOfMemoryError")
    monkeypatch.delattr(torch, "AcceleratorError", raising=False)
    assert set(runpy.run_path(errors.__file__)["DEVICE_ERRORS"]) == {torch.cuda.OutOfMemoryError}


def test_dtypes_that_torch_lacks_are_left_out(monkeypatch):
    monkeypatch.delattr(torch, "float8_e8m0fnu", raising=False)
    found = runpy.run_path(specs.__file__, run_name="specs_of_an_older_torch")["DTYPES"]
    assert "F8_E8M0" not in found and {**specs.DTYPES, **found} == specs.DTYPES and found["BF16"] is torch.bfloat16


def test_every_name_of_the_format_is_known_here():
    assert set(specs.DTYPES) >= {"BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "F64",
                                 "I64", "U64"}
