"""The GGUF encoders beside ggml's own: bytes of the reference search, and errors without and with importances.

golden/ggml_reference.safetensors holds both (golden/make_ggml_reference.py). What is decoded is decoded by gguf-py.
"""
from pathlib import Path

import gguf
import pytest
import torch
from safetensors.torch import load_file
from wan22_master.quant.gguf import families
from wan22_master.quant.gguf.block_type import BlockType

GOLDEN = load_file(Path(__file__).resolve().parents[2] / "golden" / "ggml_reference.safetensors")
TYPES = tuple(families.SIZES)
BACKENDS = ("torch", "numba") if families.has_numba() else ("torch",)
DENORMALS = 4                                      # of the extremes: ggml makes whole numbers of inf there, undefined in C
KINDS, GAUSS = ("gauss", "student", "laplace", "columns"), 8     # so many rows of each


def decoded(name: str, stored: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(gguf.quants.dequantize(stored.numpy(), gguf.GGMLQuantizationType[name]))


def error(name: str, stored: torch.Tensor, part: str = "weights", columns: torch.Tensor | float = 1.0) -> torch.Tensor:
    """(rows,) float64: squared error of each row of a part of the golden."""
    return ((decoded(name, stored).double() - GOLDEN[part].double()).square() * columns).sum(1)


def over(ours: torch.Tensor, theirs: torch.Tensor) -> dict[str, float]:
    """Kinds of weights whose error is larger than ggml's, and how many times as large."""
    ratios = (ours.view(len(KINDS), -1).sum(1) / theirs.view(len(KINDS), -1).sum(1)).sqrt().tolist()
    return {kind: ratio for kind, ratio in zip(KINDS, ratios, strict=True) if ratio > 1}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TYPES)
def test_the_reference_setting_writes_ggml_s_bytes(name, backend):
    form = BlockType(name, "reference", backend)
    for part in ("weights", "extremes"):
        stored, golden = form.quantize(GOLDEN[part])[""], GOLDEN[f"{part}.{name}"]
        wrong = (stored != golden).any(1).nonzero().view(-1).tolist()
        assert wrong == [] or (part, wrong) == ("extremes", [DENORMALS])
    assert torch.equal(decoded(name, stored[DENORMALS:DENORMALS + 1]).abs(), torch.zeros(1, GOLDEN["extremes"].shape[1]))


@pytest.mark.parametrize("name", TYPES)
def test_best_errs_no_more_than_ggml_s_reference(name):
    stored = BlockType(name).quantize(GOLDEN["weights"])[""]
    assert over(error(name, stored), error(name, GOLDEN[f"weights.{name}"])) == {}


@pytest.mark.parametrize("name", TYPES)
def test_max_errs_no_more_than_ggml_with_an_imatrix_of_ones(name):
    stored = BlockType(name, "max").quantize(GOLDEN["weights"])[""]
    assert over(error(name, stored), GOLDEN[f"even.{name}"]) == {}


@pytest.mark.parametrize("setting", ["best", "max"])
@pytest.mark.parametrize("name", TYPES)
def test_importances_leave_no_more_weighted_error_than_ggml_s_imatrix(name, setting):
    importance = GOLDEN["importance"]
    stored = BlockType(name, setting).quantize(GOLDEN["weights"], importance=importance)[""]
    assert over(error(name, stored, columns=importance.double()), GOLDEN[f"weighted.{name}"]) == {}


@pytest.mark.parametrize("setting", ["best", "max"])
@pytest.mark.parametrize("name", TYPES)
def test_blocks_with_an_outlier_err_no_more_than_ggml_s_reference(name, setting):
    stored = BlockType(name, setting).quantize(GOLDEN["outliers"])[""]
    assert error(name, stored, "outliers").sum() <= GOLDEN[f"outliers.{name}"].sum()


@pytest.mark.parametrize("setting", ["best", "max"])
@pytest.mark.parametrize("name", TYPES)
def test_unusual_rows_err_no_more_than_ggml_s_reference_or_usual_weights(name, setting):
    # A row of constants or ties may be a lucky one for ggml's rule; then the type's error on Gaussian weights is what to expect.
    ours, theirs = (error(name, stored, "extremes")
                    for stored in (BlockType(name, setting).quantize(GOLDEN["extremes"])[""], GOLDEN[f"extremes.{name}"]))
    usual = error(name, GOLDEN[f"weights.{name}"])[:GAUSS].sum() / GOLDEN["weights"][:GAUSS].double().square().sum()
    assert (ours <= torch.maximum(theirs, usual * GOLDEN["extremes"].double().square().sum(1))).tolist() == [True] * len(ours)
