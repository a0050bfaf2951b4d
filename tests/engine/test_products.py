"""Products of factors: as exact as float32 allows, the same bits every time, and torch's own where there is no faster one."""
import pytest
import torch
from wan22_master.engine import products

SHAPES = [(128, 64, 5120), (1, 1, 1), (7, 3, 11), (128, 640, 256), (33, 16, 1)]


def factors(rows, inner, columns):
    random = torch.Generator().manual_seed(rows)
    return torch.randn(rows, inner, generator=random), torch.randn(columns, inner, generator=random)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_contiguous", [True, False])
def test_a_product_is_that_of_float64_to_float32s_accuracy(shape, is_contiguous):
    left, right_t = factors(*shape)
    if not is_contiguous:
        left, right_t = left.t().contiguous().t(), right_t.t().contiguous().t()
    found, exact = products.multiply(left, right_t), left.double() @ right_t.double().t()
    assert (found.double() - exact).norm() <= 2**-24 * shape[1] ** 0.5 * exact.norm()   # 2^-24 a sum, random signs


def test_the_bits_depend_on_nothing_but_the_numbers():
    left, right_t = factors(128, 64, 5120)
    found = products.multiply(left, right_t)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(products.multiply(left.clone(), right_t.clone()), found)
    finally:
        torch.set_num_threads(threads)


def test_torchs_own_product_depends_on_no_thread_count_either(monkeypatch):
    monkeypatch.setattr(products, "_linear", lambda: None)
    before = torch.get_num_threads()
    try:
        for shape in ((7, 512, 63), (4, 512, 36), (24, 2048, 24)):         # as MKL shares them out, by twos and by fours
            found = []
            for count in (1, 2, 4):
                torch.set_num_threads(count)
                found.append(products.multiply(*factors(*shape)))
                assert torch.get_num_threads() == count
            assert all(torch.equal(found[0], each) for each in found[1:])
    finally:
        torch.set_num_threads(before)


def test_empty_factors_give_zeros():
    assert torch.equal(products.multiply(torch.ones(3, 0), torch.ones(4, 0)), torch.zeros(3, 4))


@pytest.mark.parametrize("fault", ["wrong", "missing"])
def test_an_operator_that_fails_its_test_is_not_taken(monkeypatch, fault):
    def wrong(left, right_t, *others):
        return left.bfloat16() @ right_t.bfloat16().t()

    products._linear.cache_clear()
    if fault == "wrong":
        monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", wrong, raising=False)
    else:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    try:
        left, right_t = factors(128, 64, 320)
        assert products._linear() is None and torch.equal(products.multiply(left, right_t), torch.mm(left, right_t.t()))
    finally:
        products._linear.cache_clear()
