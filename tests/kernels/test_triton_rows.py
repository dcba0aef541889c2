"""The Triton kernels of decode, project and k-means: on the CPU through Triton's interpreter, and on a GPU."""

from itertools import pairwise

import pytest
import torch

from saerl_fast import ops
from saerl_fast.errors import InputError, NonFiniteError
from saerl_fast.kernels import triton_runtime
from saerl_fast.ops import CsrRows, TopKCodes
from saerl_fast.ops.reference import as_csr
from tests.op_table import csr_rows, dense, grid, topk_codes


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if reason := triton_runtime.refuses(request.param):
        pytest.skip(reason)
    return request.param


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moved(value, device):
    return value.to(device) if isinstance(value, torch.Tensor) else type(value)(*(part.to(device) for part in value))


def gradients(codes, w_dec, b_dec, upstream, backend, device="cpu"):
    codes = moved(codes, device)
    leaves = [part.to(device).detach().requires_grad_() for part in (codes.values, w_dec, b_dec)]
    out = ops.decode(codes._replace(values=leaves[0]), *leaves[1:], backend=backend)
    out.backward(upstream.to(device, out.dtype))
    return [part.cpu() for part in (out.detach(), *(leaf.grad for leaf in leaves))]


def wide(codes):
    return codes._replace(values=codes.values.double())


@pytest.mark.parametrize(("n_rows", "longest"), [(40, 128), (40, 4), (0, 4)])
def test_gradients_of_whole_numbers_are_exact(device, n_rows, longest, monkeypatch):
    """Also where a latent fires in more rows than one piece holds."""
    from saerl_fast.kernels import decode_triton

    monkeypatch.setattr(decode_triton, "LONGEST", longest)
    for codes in (topk_codes(n_rows, 3, 7), csr_rows(n_rows, 7)):
        w_dec, b_dec, upstream = grid(7, 21, seed=2), grid(21, seed=3), grid(n_rows, 21, seed=4)
        got = gradients(codes, w_dec, b_dec, upstream, "triton", device)
        wanted = gradients(wide(codes), w_dec.double(), b_dec.double(), upstream, "reference")
        for one, other in zip(got, wanted, strict=True):
            assert one.dtype == torch.float32
            assert torch.equal(one.double(), other)


def test_gradients_of_an_index_that_occurs_twice_in_a_row(device):
    codes = TopKCodes(grid(6, 5, low=1), torch.tensor([[3, 3, 1, 3, 0]] * 6).int())
    w_dec, b_dec, upstream = grid(4, 9, seed=2), grid(9, seed=3), grid(6, 9, seed=4)
    got = gradients(codes, w_dec, b_dec, upstream, "triton", device)
    wanted = gradients(wide(codes), w_dec.double(), b_dec.double(), upstream, "reference")
    for one, other in zip(got, wanted, strict=True):
        assert torch.equal(one.double(), other)


def test_at_most_twice_the_error_of_torch(device):
    codes = topk_codes(24, 9, 60)._replace(values=normal(24, 9))
    w_dec, b_dec, upstream = normal(60, 130), normal(130, seed=2), normal(24, 130, seed=3)
    truth = gradients(wide(codes), w_dec.double(), b_dec.double(), upstream.double(), "reference")
    plain = gradients(codes, w_dec, b_dec, upstream, "reference")
    ours = gradients(codes, w_dec, b_dec, upstream, "triton", device)
    for one, other, exact in zip(ours, plain, truth, strict=True):
        assert (one - exact).abs().max() <= 2 * (other - exact).abs().max()
    again = gradients(codes, w_dec, b_dec, upstream, "triton", device)
    assert all(torch.equal(one, other) for one, other in zip(ours, again, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_weights_are_read_as_they_are_and_get_gradients_of_their_type(device, dtype):
    codes, w_dec = topk_codes(6, 4, 30), normal(30, 9).to(dtype)
    got = gradients(codes, w_dec, normal(9), normal(6, 9), "triton", device)
    exact = gradients(wide(codes), w_dec.double(), normal(9).double(), normal(6, 9), "reference")
    assert got[2].dtype == dtype
    assert (got[0] - exact[0]).abs().max() <= 1e-5
    assert (got[2].double() - exact[2]).abs().max() <= 2**-7 * exact[2].abs().max()


@pytest.mark.parametrize("stray", [-1, 30, 2**31 - 1, -(2**31)])
def test_an_index_outside_is_not_read_and_marks_its_row(device, stray):
    codes = topk_codes(6, 4, 30)
    clean = ops.decode(codes, normal(30, 9), normal(9), backend="reference")
    codes.indices[2, 1] = stray
    got = ops.decode(moved(codes, device), normal(30, 9).to(device), normal(9).to(device), backend="triton").cpu()
    assert got[2].isnan().all()
    others = torch.arange(6) != 2
    assert torch.allclose(got[others], clean[others], atol=1e-5)
    values, w_dec = gradients(codes, normal(30, 9), normal(9), torch.ones(6, 9), "triton", device)[1:3]
    assert values.isnan().sum() == 1
    assert values[2, 1].isnan()
    assert w_dec.isfinite().all()


@pytest.mark.parametrize("indptr", [[0, 2, 1, 2], [0, 1, 1, 9], [-1, 1, 1, 2]])
def test_broken_offsets_mark_their_rows_and_read_nothing_else(device, indptr):
    rows = CsrRows(torch.tensor(indptr), torch.tensor([0, 1]).int(), torch.ones(2))
    got = ops.project(moved(rows, device), torch.ones(3, 4, device=device), backend="triton").cpu()
    broken = [not 0 <= begin <= end <= 2 for begin, end in pairwise(indptr)]
    assert got.isnan().all(dim=1).tolist() == broken
    with pytest.raises(InputError, match="rows.indptr must"):
        ops.kmeans_assign(moved(rows, device), torch.ones(2, 3, device=device), backend="triton")


def test_rows_of_the_table_that_nothing_points_to_are_not_read(device):
    w_dec = torch.full((4, 3), torch.nan)
    w_dec[1] = 2
    rows = moved(CsrRows(torch.tensor([0, 1, 1]), torch.tensor([1]).int(), torch.tensor([3.0])), device)
    got = ops.decode(rows, w_dec.to(device), torch.ones(3, device=device), backend="triton")
    assert got.tolist() == [[7, 7, 7], [1, 1, 1]]


def test_opcheck():
    if reason := triton_runtime.refuses("cpu"):
        pytest.skip(reason)
    from saerl_fast.kernels import decode_triton  # noqa: F401

    rows = as_csr(topk_codes(3, 5, 20))
    leaves = (part.requires_grad_() for part in (rows.values, grid(20, 6), grid(6)))
    arguments = (rows.indptr, rows.indices, *leaves)
    result = torch.library.opcheck(torch.ops.saerl_fast.decode_rows_triton.default, arguments)
    assert set(result.values()) == {"SUCCESS"}


# ---- k-means


def rounding_rows(form, n_rows, n_latents):
    if form == "dense":
        return normal(n_rows, n_latents, seed=3)
    rows = csr_rows(n_rows, n_latents)
    return rows._replace(values=normal(len(rows.values), seed=3))


@pytest.mark.parametrize("form", ["dense", "csr"])
@pytest.mark.parametrize(("n_rows", "n_latents", "n_clusters"), [(66, 33, 65), (3, 1, 300), (1, 40, 16)])
def test_nearest_of_whole_numbers(device, form, n_rows, n_latents, n_clusters):
    rows = grid(n_rows, n_latents, seed=1) if form == "dense" else csr_rows(n_rows, n_latents, seed=1)
    centroids = grid(n_clusters, n_latents, seed=2)
    x = rows if form == "dense" else dense(rows, n_latents)
    distance = (x.double()[:, None] - centroids.double()).square().sum(dim=2)
    labels, score = ops.kmeans_assign(moved(rows, device), centroids.to(device), backend="triton")
    wanted = distance.min(dim=1)
    assert torch.equal(labels.cpu().long(), wanted.indices)  # ties to the lower cluster
    assert torch.equal(score.cpu().double(), wanted.values)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("form", ["dense", "csr"])
def test_labels_are_those_of_float64_where_rounding_leaves_no_doubt(device, form, metric):
    rows, centroids = rounding_rows(form, 40, 50), normal(20, 50, seed=4)
    x = (rows if form == "dense" else dense(rows, 50)).double()
    distance = torch.cdist(x, centroids.double()).square()
    if metric == "cosine":
        unit = torch.nn.functional.normalize
        distance = 1 - unit(x) @ unit(centroids.double()).T
    labels, score = ops.kmeans_assign(moved(rows, device), centroids.to(device), metric=metric, backend="triton")
    plain = ops.kmeans_assign(rows, centroids, metric=metric, backend="reference")[1]
    best = distance.topk(2, largest=False).values
    clear = best[:, 1] - best[:, 0] > 1e-5 * (1 + best[:, 1])
    assert clear.sum() > 30
    assert torch.equal(labels.cpu()[clear].long(), distance.argmin(dim=1)[clear])
    error = (score.cpu() - best[:, 0].clamp(min=0)).abs().max()
    assert error <= 2 * (plain - best[:, 0].clamp(min=0)).abs().max()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_equal_centroids_are_a_tie(device, metric):
    rows, centroids = rounding_rows("csr", 9, 30), normal(1, 30, seed=5).expand(270, 30)
    for given in (rows, dense(rows, 30, torch.float32)):
        labels = ops.kmeans_assign(moved(given, device), centroids.to(device), metric=metric, backend="triton")[0]
        assert not labels.any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_number_is_refused(device, bad):
    for form in ("dense", "csr"):
        rows, centroids = moved(rounding_rows(form, 9, 30), device), normal(4, 30).to(device)
        centroids[3, 7] = bad
        with pytest.raises(NonFiniteError, match="9 of 9 rows have a NaN distance"):
            ops.kmeans_assign(rows, centroids, backend="triton")
    rows = moved(rounding_rows("dense", 9, 30), device)
    rows[4, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="1 of 9 rows .*first: row 4"):
        ops.kmeans_assign(rows, normal(4, 30).to(device), backend="triton")


def test_a_bad_index_is_named(device):
    rows = csr_rows(9, 30)
    rows.indices[3] = 30
    with pytest.raises(InputError, match=r"rows.indices must lie in 0..29"):
        ops.kmeans_assign(moved(rows, device), grid(4, 30).to(device), backend="triton")


@pytest.mark.parametrize("shortest", [3, 128])
def test_clusters_of_many_rows_are_added_up_in_parts(device, shortest, monkeypatch):
    from saerl_fast.kernels import kmeans_triton

    monkeypatch.setattr(kmeans_triton, "SHORTEST", shortest)
    rows, labels = grid(40, 19), torch.tensor([0, 4, 4, 1] * 10)
    wanted = ops.kmeans_update(rows.double(), labels, 6, backend="reference")
    sums, counts = ops.kmeans_update(rows.to(device), labels.to(device), 6, backend="triton")
    assert torch.equal(sums.cpu(), wanted[0])
    assert torch.equal(counts.cpu(), wanted[1])
    assert counts.dtype == torch.int64
