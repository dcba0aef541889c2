"""StreamingKMeans on torch tensors: in torch's CSR layout on the CPU, in both forms on a GPU, as on numpy's arrays."""

import numpy as np
import pytest
import torch
from scipy import sparse

from saerl_fast.errors import DtypeError, InputError, NonFiniteError, ShapeError
from saerl_fast.signals import StreamingKMeans
from saerl_fast.signals.cluster_rows import cluster_rows
from saerl_fast.signals.tensor_rows import in_tensors, tensor_rows
from tests.signals import planted

pytestmark = pytest.mark.filterwarnings("ignore:Sparse (CSR tensor support is in beta|invariant checks)")


def rows_of(form, device):
    """The same rows as scipy or numpy has them, and as a tensor."""
    csr = sparse.csr_array(planted.clusters(300, 60, 5)[0])
    csr.sort_indices()
    if form == "dense":
        return csr.toarray(), torch.from_numpy(csr.toarray()).to(device)
    parts = (torch.from_numpy(part) for part in (csr.indptr.astype(np.int64), csr.indices.astype(np.int64), csr.data))
    return csr, torch.sparse_csr_tensor(*parts, size=csr.shape, check_invariants=True).to(device)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return request.param


@pytest.mark.parametrize("transform", ["none", "sqrt", "log1p"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("form", ["dense", "csr"])
def test_the_rows_are_those_of_the_arrays(form, metric, transform, device):
    arrays, tensor = rows_of(form, device)
    wanted = cluster_rows(arrays, metric, transform)
    got = tensor_rows(StreamingKMeans(), tensor, metric, transform, reset=True)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got.square_norms, wanted.square_norms, rtol=1e-6)
    some = np.array([0, 7, 299])
    np.testing.assert_allclose(got.pick(some), wanted.pick(some), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(got.take(some).pick(np.arange(3)), wanted.pick(some), rtol=1e-6, atol=1e-7)
    centroids = wanted.pick(some)
    np.testing.assert_allclose(got.distances(centroids), wanted.distances(centroids), rtol=1e-4, atol=1e-4)
    labels, _ = wanted.assign(centroids)
    np.testing.assert_array_equal(got.assign(centroids)[0], labels)
    np.testing.assert_allclose(got.sums(labels, 3)[0], wanted.sums(labels, 3)[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(got.sums(labels, 3)[1], wanted.sums(labels, 3)[1])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("form", ["csr", pytest.param("dense", marks=pytest.mark.gpu)])
def test_fit_partial_fit_and_predict(form, metric, device):
    arrays, tensor = rows_of(form, device)
    if form == "dense" and device == "cpu":
        pytest.skip("dense tensors on the CPU are numpy's")
    on_arrays, on_tensor = (StreamingKMeans(5, metric=metric, random_state=3) for _ in range(2))
    on_arrays.fit(arrays)
    on_tensor.fit(tensor)
    np.testing.assert_array_equal(on_tensor.labels_, on_arrays.labels_)
    np.testing.assert_allclose(on_tensor.cluster_centers_, on_arrays.cluster_centers_, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(on_tensor.predict(tensor), on_tensor.labels_)
    assert on_tensor.transform(tensor).shape == (300, 5)
    by_batch, streamed = (StreamingKMeans(5, metric=metric, random_state=3) for _ in range(2))
    for _ in range(3):
        by_batch.partial_fit(arrays)
        streamed.partial_fit(tensor)
    np.testing.assert_array_equal(streamed.counts_, by_batch.counts_)
    np.testing.assert_array_equal(streamed.labels_, by_batch.labels_)
    with pytest.raises(InputError, match="X has 9 features, but StreamingKMeans is expecting 60"):
        on_tensor.predict(torch.eye(9).to_sparse_csr().to(device))


def test_what_is_refused():
    def fit(rows):
        return tensor_rows(StreamingKMeans(), rows, "cosine", "none", reset=True)

    csr = torch.eye(4).to_sparse_csr()
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        fit(torch.sparse_csr_tensor(csr.crow_indices(), csr.col_indices(), torch.full((4,), torch.nan), size=(4, 4)))
    with pytest.raises(InputError, match="ascending and distinct"):
        fit(torch.sparse_csr_tensor([0, 2, 2], [1, 1], [1.0, 1.0], size=(2, 4), check_invariants=False))
    with pytest.raises(InputError, match=r"rows.indices must lie in 0..3"):
        fit(torch.sparse_csr_tensor([0, 1, 2], [1, 4], [1.0, 1.0], size=(2, 4), check_invariants=False))
    with pytest.raises(DtypeError, match="floating-point"):
        fit(torch.ones(2, 2, dtype=torch.int64))
    with pytest.raises(ShapeError, match=r"must be \[S, M\]"):
        fit(torch.ones(2))
    with pytest.raises(InputError, match="at least one row"):
        fit(torch.ones(0, 3))


def test_tensors_that_numpy_can_hold_stay_with_numpy():
    assert in_tensors(torch.eye(3).to_sparse_csr())
    assert in_tensors(torch.zeros(2, 2, device="meta"))
    assert not in_tensors(torch.eye(3))
    assert not in_tensors(np.eye(3))
