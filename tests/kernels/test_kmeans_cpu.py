"""The compiled k-means steps and sparse products: instruction sets, threads, panels, stretches."""

import numpy as np
import pytest
import torch

from saerl_fast import ops
from saerl_fast.errors import NonFiniteError
from saerl_fast.kernels import kmeans_cpu, native, sparse_cpu
from saerl_fast.ops import CsrRows
from tests.op_table import csr_rows, dense, grid

if native.missing():
    pytest.skip(native.missing(), allow_module_level=True)

SETS = native.module().instruction_sets()
SHAPES = [(1, 1, 1), (70, 50, 15), (65, 300, 64), (40, 1100, 65), (130, 700, 200)]


def rounding_rows(n_rows, n_latents, share=0.3, seed=0):
    rows = csr_rows(n_rows, n_latents, seed=seed, share=share)
    return rows._replace(values=torch.randn(len(rows.values), generator=torch.Generator().manual_seed(seed)))


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_whole_numbers_are_exact(shape, isa):
    n_rows, n_latents, width = shape
    rows, table = csr_rows(n_rows, n_latents), grid(n_latents, width)
    wanted = dense(rows, n_latents) @ table.double()
    assert torch.equal(sparse_cpu.project(rows, table, isa).double(), wanted)
    labels, _ = kmeans_cpu.assign(rows, table.T, "euclidean", isa)
    distance = table.double().square().sum(dim=0) - 2 * wanted
    assert torch.equal(labels.long(), distance.min(dim=1).indices)  # ties to the lower cluster


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("n_clusters", [1, 15, 16, 33, 64, 65, 200])
@pytest.mark.parametrize("n_latents", [1, 7, 130, 700])
def test_whole_numbers_are_exact_on_dense_rows(n_latents, n_clusters, isa):
    # 1 to 13 rows: groups of six that are not full; 50: more than one block of rows
    for n_rows in (*range(1, 14), 50):
        x, centroids = grid(n_rows, n_latents, seed=n_rows), grid(n_clusters, n_latents)
        distance = (x.double()[:, None] - centroids.double()).square().sum(dim=2)
        labels, score = kmeans_cpu.assign(x, centroids, "euclidean", isa)
        assert torch.equal(labels.long(), distance.min(dim=1).indices)  # ties to the lower cluster
        assert torch.equal(score.double(), distance.min(dim=1).values)
        sums, counts = kmeans_cpu.update(x, labels, n_clusters, n_latents, isa)
        member = torch.nn.functional.one_hot(labels.long(), n_clusters).double()
        assert torch.equal(sums.double(), member.T @ x.double())
        assert torch.equal(counts, member.sum(dim=0).long())


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_instruction_sets_differ_by_rounding_only_on_dense_rows(metric):
    x, centroids = normal(300, 333), normal(70, 333, seed=2)
    got = {isa: kmeans_cpu.assign(x, centroids, metric, isa) for isa in SETS}
    for labels, score in got.values():
        assert torch.equal(labels, got["plain"][0])
        torch.testing.assert_close(score, got["plain"][1], rtol=1e-6, atol=1e-6)
    if {"avx512", "avx2"} <= set(SETS):
        assert torch.equal(got["avx512"][1], got["avx2"][1])
    sums = [kmeans_cpu.update(x, got["plain"][0], 70, 333, isa)[0] for isa in SETS]
    assert all(torch.equal(one, sums[0]) for one in sums)  # nothing but additions, in one order


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nan_of_one_dense_row_stays_in_it(bad, isa):
    x, centroids = normal(13, 40), normal(70, 40, seed=2)
    wanted = kmeans_cpu.assign(x, centroids, "euclidean", isa)
    x[8, 3] = bad
    labels, score = kmeans_cpu.assign(x, centroids, "euclidean", isa)
    others = torch.arange(13) != 8
    assert score[8].isnan()
    assert torch.equal(labels[others], wanted[0][others])
    assert torch.equal(score[others], wanted[1][others])


@pytest.mark.parametrize("isa", SETS)
def test_a_tie_between_panels_goes_to_the_lower_cluster(isa):
    x, centroids = grid(20, 30), grid(50, 30, seed=2).repeat(4, 1)
    labels, _ = kmeans_cpu.assign(x, centroids, "euclidean", isa)
    assert labels.max() < 50


@pytest.mark.parametrize("share", [0.01, 0.2, 0.9])
def test_instruction_sets_differ_by_rounding_only(share):
    rows, table = rounding_rows(100, 900, share), normal(900, 100)
    wanted = dense(rows, 900) @ table.double()
    bound = 1e-6 * (dense(rows, 900).abs() @ table.double().abs())
    got = {isa: sparse_cpu.project(rows, table, isa) for isa in SETS}
    for one in got.values():
        assert ((one - wanted).abs() <= bound).all()
    if {"avx512", "avx2"} <= set(SETS):
        assert torch.equal(got["avx512"], got["avx2"])


@pytest.mark.parametrize("how", ["none", "sqrt", "log1p"])
@pytest.mark.parametrize("share", [0.01, 0.2, 0.9])
def test_weighted_rows_of_length_one(share, how):
    # more rows than two blocks, rows without entries, and numbers of entries that no vector divides
    rows, table, weights = rounding_rows(150, 900, share), normal(900, 100), normal(900, seed=3).abs()
    even = {"none": lambda v: v, "sqrt": torch.sqrt, "log1p": torch.log1p}[how]
    weighted = dense(rows, 900)
    weighted = even(weighted.abs()).copysign(weighted) * weights.double()
    unit = torch.nn.functional.normalize(weighted, eps=1e-300)
    bound = 1e-6 * (unit.abs() @ table.double().abs())
    got = {isa: sparse_cpu.project_weighted(rows, table, weights, how, isa) for isa in SETS}
    for one in got.values():
        assert ((one - unit @ table.double()).abs() <= bound).all()
    if {"avx512", "avx2"} <= set(SETS):
        assert torch.equal(got["avx512"], got["avx2"])


@pytest.mark.parametrize("isa", SETS)
def test_a_length_beyond_float32_is_no_infinity(isa):
    rows = CsrRows(torch.tensor([0, 2, 2, 3]), torch.tensor([0, 1, 1]), torch.tensor([3e30, 4e30, 1e-30]))
    got = sparse_cpu.project_weighted(rows, torch.eye(2), torch.ones(2), "none", isa)
    torch.testing.assert_close(got, torch.tensor([[0.6, 0.8], [0, 0], [0, 1]]))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("n_clusters", [1, 16, 100])
def test_threads_change_no_bits(metric, sparse, n_clusters, threads):
    csr = rounding_rows(1500, 200)
    rows = csr if sparse else dense(csr, 200, torch.float32)
    centroids = normal(n_clusters, 200)
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        labels, score = ops.kmeans_assign(rows, centroids, metric=metric, backend="cpu")
        results.append((labels, score, *ops.kmeans_update(rows, labels, n_clusters, n_latents=200, backend="cpu")))
    for other in results[1:]:
        for one, first in zip(other, results[0], strict=True):
            assert torch.equal(one, first)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_labels_are_those_of_float64_and_of_the_reference(metric):
    rows, centroids = rounding_rows(3000, 150), normal(40, 150)
    labels, score = ops.kmeans_assign(rows, centroids, metric=metric, backend="cpu")
    unit = (lambda m: torch.nn.functional.normalize(m)) if metric == "cosine" else (lambda m: m)
    x, c = unit(dense(rows, 150)), unit(centroids.double())
    distance = x.square().sum(1)[:, None] - 2 * x @ c.T + c.square().sum(1)
    if metric == "cosine":
        distance = 1 - x @ c.T
    least = distance.min(dim=1).values
    gap = distance.topk(2, largest=False).values.diff(dim=1)[:, 0]
    clear = gap > 1e-4
    assert clear.double().mean() > 0.75  # empty rows are ties of the cosine
    assert torch.equal(labels.long()[clear], distance.argmin(dim=1)[clear])
    torch.testing.assert_close(score.double(), least, rtol=1e-5, atol=1e-5)
    assert torch.equal(labels[clear], ops.kmeans_assign(rows, centroids, metric=metric, backend="reference")[0][clear])


@pytest.mark.parametrize("sparse", [True, False])
def test_sums_are_rounded_once(sparse):
    csr = rounding_rows(400, 1500)
    labels = torch.arange(400, dtype=torch.int32) % 3
    array = dense(csr, 1500)
    sums, counts = ops.kmeans_update(csr if sparse else array.float(), labels, 5, n_latents=1500, backend="cpu")
    wanted = torch.stack([array[labels == k].sum(dim=0) for k in range(5)])
    assert counts.tolist() == [134, 133, 133, 0, 0]
    assert ((sums - wanted).abs() <= 2**-24 * wanted.abs() + 1e-13).all()


@pytest.mark.parametrize("where", ["row", "centroid"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_nan_and_infinity_are_refused(metric, bad, where):
    rows, centroids = csr_rows(6, 20), grid(70, 20)
    if where == "row":
        rows.values[5] = bad
        centroids[3, int(rows.indices[5])] = 1.0
    else:
        centroids[66, 4] = bad
    with pytest.raises(NonFiniteError, match="have a NaN distance"):
        ops.kmeans_assign(rows, centroids, metric=metric, backend="cpu")


def far_rows_in_numpy(x, may_seed, draws):
    """Greedy k-means++ as its definition says, on whole numbers, where every sum is exact."""
    x, limit, chosen = x.double().numpy(), np.where(may_seed, np.inf, 0), []
    weights = may_seed.double().numpy()
    for points in draws.numpy():
        totals = np.cumsum(weights)
        if totals[-1] == 0:
            break
        trials = np.searchsorted(totals, (points if chosen else points[:1]) * totals[-1], side="right")
        left = np.minimum(limit, np.square(x[trials][:, None] - x).sum(axis=2))
        best = left.sum(axis=1).argmin()
        chosen.append(int(trials[best]))
        weights = limit = left[best]
    return chosen


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize(("n_rows", "n_latents", "clusters", "trials"), [(1, 3, 1, 2), (70, 5, 9, 4), (200, 33, 40, 8)])
def test_far_rows_are_those_of_the_definition(n_rows, n_latents, clusters, trials, isa, threads):
    x, may_seed = grid(n_rows, n_latents), torch.arange(n_rows) % 7 != 3
    draws = torch.rand(clusters, trials, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for count in (1, 3):
        threads(count)
        assert kmeans_cpu.far_rows(x, may_seed, draws, isa).tolist() == far_rows_in_numpy(x, may_seed, draws)


@pytest.mark.parametrize("isa", SETS)
def test_no_more_far_rows_than_different_ones(isa):
    x = grid(3, 20).repeat(40, 1)
    chosen = kmeans_cpu.far_rows(x, torch.ones(120, dtype=torch.bool), torch.rand(9, 4, dtype=torch.float64), isa)
    assert sorted((chosen % 3).tolist()) == [0, 1, 2]
    assert len(kmeans_cpu.far_rows(x, torch.zeros(120, dtype=torch.bool), torch.rand(9, 4).double(), isa)) == 0


def test_rows_out_of_order_give_the_same_sums():
    rows = csr_rows(20, 900)
    order = torch.cat(
        [torch.arange(int(a), int(b)).flip(0) for a, b in zip(rows.indptr, rows.indptr[1:], strict=False)]
    )
    turned = CsrRows(rows.indptr, rows.indices[order], rows.values[order])
    assert torch.equal(sparse_cpu.project(turned, grid(900, 70)), sparse_cpu.project(rows, grid(900, 70)))


def test_the_compiled_side_guards_itself():
    labels, counts = torch.tensor([0, 5], dtype=torch.int32), torch.zeros(5, dtype=torch.int64)
    with pytest.raises(ValueError, match="labels must name clusters"):
        native.module().sum_dense(0, 2, 0, 0, labels.data_ptr(), 5, 0, counts.data_ptr(), 1, "auto")
    with pytest.raises(ValueError, match="panels must be 16, 32, 48 or 64 wide"):
        native.module().multiply_sparse(0, 0, 0, 0, 3, 0, 65, 3, 0, 1, "auto")
