"""The compiled sample and transpose against scipy's, whatever the instruction set and the number of threads."""

import numpy as np
import pytest
import torch
from scipy import sparse

from saerl_fast.kernels import native, sparse_cpu
from saerl_fast.signals.counted_rows import as_tensors
from saerl_fast.signals.row_sample import transposed, unit_sample
from saerl_fast.signals.scaling import transform_rows, unit_length
from tests.signals import planted

ISAS = native.module().instruction_sets() if native.missing() is None else []
WEIGHTS = 1 + np.random.default_rng(5).random(70)


@pytest.fixture
def rows():
    found = planted.pooled(90, 70).tolil()
    found[7] = found[89] = 0
    csr = sparse.csr_array(found, dtype=np.float32)
    csr.data[::5] *= -1
    return csr


CHOSEN = np.array([3, 7, 7, 0, 89, 41])


@pytest.mark.parametrize("how", ["none", "sqrt", "log1p"])
@pytest.mark.parametrize("compiled", [True, False])
def test_rows_have_length_one_under_the_weights(rows, how, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(native, "missing", lambda: "left out by a test")
    found = unit_sample(rows, CHOSEN, how, WEIGHTS)
    wide = transform_rows(rows, how).toarray().astype(np.float64)[CHOSEN]
    length = np.linalg.norm(wide * WEIGHTS, axis=1, keepdims=True)
    np.testing.assert_allclose(found.toarray(), wide / np.where(length == 0, 1, length), rtol=1e-6)
    assert not found.toarray()[[1, 2, 4]].any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("root", [True, False])
def test_threads_and_instruction_sets_change_no_bits(rows, root, isa, monkeypatch):
    weights, chosen = torch.from_numpy(WEIGHTS.astype(np.float32)), torch.from_numpy(CHOSEN)
    first = sparse_cpu.unit_sample(as_tensors(rows), chosen, 70, weights, root)
    for threads in (1, 2, 3, 7):
        monkeypatch.setattr(native, "threads", lambda count=threads: count)
        found = sparse_cpu.unit_sample(as_tensors(rows), chosen, 70, weights, root, isa)
        assert all(torch.equal(one, other) for one, other in zip(first, found, strict=True))
    wanted = unit_length(transform_rows(rows, "sqrt" if root else "none")[CHOSEN], WEIGHTS)
    np.testing.assert_allclose(first.values.numpy(), wanted.data, rtol=2e-7)


@pytest.mark.parametrize("compiled", [True, False])
def test_transpose(rows, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(native, "missing", lambda: "left out by a test")
    for given in (rows, sparse.csr_array((3, 4), dtype=np.float32)):
        wanted = sparse.csr_array(given.T)
        for part, expected in zip(transposed(given), (wanted.indptr, wanted.indices, wanted.data), strict=True):
            assert np.array_equal(part.numpy(), expected)
