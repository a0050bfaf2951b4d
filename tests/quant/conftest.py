"""What the tests of formats share."""
import pytest
from wan22_master.quant import backend as quant_backend


@pytest.fixture(params=["torch", "numba"])
def backend(request, monkeypatch):
    """Runs a test with the passes of torch and, where it is installed, of numba."""
    if request.param == "numba":
        pytest.importorskip("numba", reason="the compiled passes need the optional package numba")
    else:
        monkeypatch.setattr(quant_backend, "compiled", lambda: None)
    assert quant_backend.backend().startswith(request.param)
