"""The results against float64, on numbers that do round."""

from itertools import pairwise

import pytest
import torch

from saerl_fast import ops
from tests.op_table import OPERATIONS, absent, csr_rows, dense, topk_codes

SHAPES = [(1, 1, 1, 1), (40, 64, 512, 32), (33, 384, 4096, 32), (7, 129, 1000, 257), (1030, 48, 5000, 8)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=OPERATIONS["topk_encode"].backends)
def backend(request):
    if reason := absent(request.param):
        pytest.skip(reason)
    return request.param


def random_encoder(shape, dtype, seed=0):
    n_rows, width, n_latents, k = shape
    generator = torch.Generator().manual_seed(seed)
    make = lambda *size: torch.randn(*size, generator=generator).to(dtype)  # noqa: E731
    x, w_enc, b_enc, b_dec = make(n_rows, width), make(n_latents, width), make(n_latents), make(width)
    return {"x": x, "w_enc": w_enc, "b_enc": b_enc, "k": k, "b_dec": b_dec}


def truth(arguments):
    """The scores in float64, and per score the width of the gap in which float32 may swap two of them."""
    x, w_enc, b_enc, b_dec = (arguments[name].double() for name in ("x", "w_enc", "b_enc", "b_dec"))
    h = (x - b_dec) @ w_enc.T + b_enc
    gap = 2.0**-20 * ((x - b_dec).norm(dim=1)[:, None] * w_enc.norm(dim=1) + b_enc.abs())
    return h, gap


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_set_is_that_of_float64(shape, dtype, backend):
    arguments = random_encoder(shape, dtype)
    h, gap = truth(arguments)
    k = arguments["k"]
    values, indices = ops.topk_encode(**arguments, relu=False, backend=backend)
    chosen = torch.zeros_like(h, dtype=torch.bool).scatter_(1, indices.long(), True)
    assert chosen.sum(dim=1).eq(k).all()  # no index twice
    kth = h.topk(k).values[:, -1:]
    assert chosen[h > kth + gap].all()
    assert not chosen[h < kth - gap].any()
    assert (values[:, :-1] >= values[:, 1:]).all()
    at_index = h.gather(1, indices.long())
    assert ((values - at_index).abs() <= gap.gather(1, indices.long())).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_are_as_near_as_those_of_torch(shape, backend):
    arguments = random_encoder(shape, torch.float32)
    h, _ = truth(arguments)
    plain = (arguments["x"] - arguments["b_dec"]) @ arguments["w_enc"].T + arguments["b_enc"]
    values, indices = ops.topk_encode(**arguments, relu=False, backend=backend)
    error = (values.double() - h.gather(1, indices.long())).abs().max()
    assert error <= 2 * (plain.double() - h).abs().max() + 1e-7


def test_bfloat16_scores_are_not_rounded(backend):
    arguments = random_encoder((64, 256, 4096, 64), torch.bfloat16)
    values, _ = ops.topk_encode(**arguments, backend=backend)
    assert (values != values.bfloat16().float()).float().mean() > 0.9


def test_lowered_matmul_precision_changes_nothing(backend):
    arguments = random_encoder((64, 256, 1024, 16), torch.float32)
    wanted = ops.topk_encode(**arguments, backend=backend)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        got = ops.topk_encode(**arguments, backend=backend)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(got.values, wanted.values)
    assert torch.equal(got.indices, wanted.indices)


def test_double_input_is_computed_in_double():
    arguments = random_encoder((20, 64, 512, 32), torch.float64)
    h, _ = truth(arguments)
    values, indices = ops.topk_encode(**arguments, relu=False)
    wanted = h.sort(dim=1, descending=True, stable=True)
    assert torch.equal(indices, wanted.indices[:, :32].int())
    assert torch.equal(values, wanted.values[:, :32].float())


def test_threshold_keeps_what_float64_keeps():
    arguments = random_encoder((50, 64, 512, 0), torch.float32)
    h, gap = truth(arguments)
    del arguments["k"]
    theta = torch.linspace(-1, 12, 512)
    rows = ops.threshold_encode(**arguments, theta=theta)
    kept = dense(rows, 512) != 0
    bound = theta.double().clamp(min=0)
    assert kept[h > bound + gap].all()
    assert not kept[h < bound - gap].any()
    assert (dense(rows, 512) - h).abs()[kept].le(gap[kept]).all()


@pytest.mark.parametrize("codes", [topk_codes(60, 9, 40), csr_rows(60, 40)], ids=["topk", "csr"])
@pytest.mark.parametrize("mode", ["mean", "max", "sum", "last", "count"])
def test_pool_is_that_of_the_dense_array(codes, mode):
    codes = codes._replace(values=codes.values + 0.3 * (codes.values != 0))
    offsets = torch.tensor([0, 7, 7, 8, 31, 60])
    array = dense(codes, 40)
    pooled = []
    for start, stop in pairwise(offsets):
        part = array[start:stop]
        if len(part) == 0:
            pooled.append(torch.zeros(40, dtype=torch.float64))
        else:
            pooled.append(
                {
                    "mean": lambda p: p.mean(dim=0),
                    "max": lambda p: p.amax(dim=0),
                    "sum": lambda p: p.sum(dim=0),
                    "last": lambda p: p[-1],
                    "count": lambda p: (p != 0).sum(dim=0),
                }[mode](part)
            )
    got = ops.segment_pool(codes, offsets, 40, mode)
    torch.testing.assert_close(dense(got, 40), torch.stack(pooled).double(), rtol=1e-6, atol=1e-6)
    assert (got.values != 0).all()
    for row in range(5):
        columns = got.indices[int(got.indptr[row]) : int(got.indptr[row + 1])]
        assert (columns.diff() > 0).all()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("sparse", [True, False])
def test_assign_is_that_of_float64(metric, sparse):
    codes = csr_rows(200, 60)
    rows = dense(codes, 60)
    centroids = torch.randn(11, 60, generator=torch.Generator().manual_seed(1))
    if metric == "euclidean":
        distance = torch.cdist(rows, centroids.double()).square()
    else:
        unit = lambda m: torch.nn.functional.normalize(m.double())  # noqa: E731
        distance = 1 - unit(rows) @ unit(centroids).T
    labels, score = ops.kmeans_assign(codes if sparse else rows.float(), centroids, metric=metric)
    torch.testing.assert_close(score.double(), distance.min(dim=1).values, rtol=1e-5, atol=1e-5)
    chosen = distance.gather(1, labels.long()[:, None])[:, 0]
    assert (chosen - distance.min(dim=1).values).max() < 1e-5
    assert labels.dtype == torch.int32
    assert score.dtype == torch.float32


@pytest.mark.parametrize("sparse", [True, False])
def test_update_is_that_of_float64(sparse):
    codes = csr_rows(200, 60)
    codes = codes._replace(values=codes.values / 3)
    labels = torch.randint(0, 6, (200,), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    labels[labels == 2] = 3
    sums, counts = ops.kmeans_update(codes if sparse else dense(codes, 60).float(), labels, 7, n_latents=60)
    wanted = torch.zeros(7, 60, dtype=torch.float64).index_add_(0, labels.long(), dense(codes, 60))
    torch.testing.assert_close(sums.double(), wanted, rtol=1e-5, atol=1e-5)
    assert counts.tolist() == [int((labels == cluster).sum()) for cluster in range(7)]
    assert sums.dtype == torch.float32
    assert counts.dtype == torch.int64


def test_decode_is_that_of_float64():
    codes = topk_codes(60, 9, 40)
    generator = torch.Generator().manual_seed(1)
    w_dec, b_dec = torch.randn(40, 13, generator=generator), torch.randn(13, generator=generator)
    wanted = dense(codes, 40) @ w_dec.double() + b_dec.double()
    torch.testing.assert_close(ops.decode(codes, w_dec, b_dec).double(), wanted, rtol=1e-5, atol=1e-5)


def test_project_is_that_of_float64():
    codes = csr_rows(60, 40)
    matrix = torch.randn(40, 13, generator=torch.Generator().manual_seed(1))
    wanted = dense(codes, 40) @ matrix.double()
    torch.testing.assert_close(ops.project(codes, matrix).double(), wanted, rtol=1e-5, atol=1e-5)
