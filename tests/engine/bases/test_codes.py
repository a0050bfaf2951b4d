"""FP8 codes: our decoding is torch's own cast, for all 256 of them."""
import pytest
import torch
from wan22_master.engine.bases.codes import decode


@pytest.mark.parametrize("scale", [1.0, 0.37, 2.0**-130, 3e-41, 1e30])
def test_every_fp8_code_decodes_as_torch_decodes_it(scale):
    """All 256 codes, without and with the two that are no numbers; scales down to subnormal ones."""
    for codes in (bytes(code for code in range(256) if code & 127 != 127), bytes(range(256))):
        out, factor = torch.empty(len(codes)), torch.tensor(scale).item()
        decode(bytearray(codes), len(codes), torch.empty(256, dtype=torch.int16), out, factor)
        wanted = torch.frombuffer(bytearray(codes), dtype=torch.float8_e4m3fn).float() * factor
        assert torch.equal(out.isnan(), wanted.isnan())
        assert torch.equal(out[~out.isnan()], wanted[~wanted.isnan()])
