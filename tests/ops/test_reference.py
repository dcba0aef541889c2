"""Small cases with the expected values written by hand."""

import pytest
import torch
from torch import tensor

from saerl_fast import ops
from saerl_fast.errors import InputError, NonFiniteError
from saerl_fast.ops import CsrRows, TopKCodes

EYE4 = torch.eye(4)
ZERO4 = torch.zeros(4)


def test_topk_takes_the_largest_and_lower_index_on_ties():
    codes = ops.topk_encode(tensor([[3.0, 5.0, 3.0, 3.0]]), EYE4, ZERO4, 3)
    assert codes.values.tolist() == [[5.0, 3.0, 3.0]]
    assert codes.indices.tolist() == [[1, 0, 2]]
    assert codes.values.dtype == torch.float32
    assert codes.indices.dtype == torch.int32


def test_topk_formula_uses_every_term():
    x, w = tensor([[2.0, 7.0]]), tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    codes = ops.topk_encode(
        x,
        w,
        tensor([10.0, 20.0, 30.0]),
        3,
        b_dec=tensor([1.0, 2.0]),
        scale=tensor([1.0, 2.0, -1.0]),
        relu=False,
    )
    # x - b_dec = (1, 5); h = (1 + 10, (5 + 20) * 2, -(6 + 30))
    assert codes.values.tolist() == [[50.0, 11.0, -36.0]]
    assert codes.indices.tolist() == [[1, 0, 2]]


def test_relu_comes_after_the_choice():
    codes = ops.topk_encode(tensor([[-1.0, 2.0, -3.0, -2.0]]), EYE4, ZERO4, 3)
    assert codes.values.tolist() == [[2.0, 0.0, 0.0]]
    assert codes.indices.tolist() == [[1, 0, 3]]


def test_nan_row_is_marked_and_infinity_comes_first():
    x = tensor([[1.0, torch.nan, 2.0, 3.0], [-torch.inf, 1.0, 2.0, torch.inf]])
    codes = ops.topk_encode(x, torch.ones(1, 4) * EYE4, ZERO4, 2)
    assert codes.values[0].isnan().all()
    assert codes.indices[0].tolist() == [0, 1]


def test_row_index_gathers_in_order_and_may_repeat():
    x = tensor([[1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 3.0, 0]])
    codes = ops.topk_encode(x, EYE4, ZERO4, 1, row_index=tensor([2, 0, 2]))
    assert codes.values.flatten().tolist() == [3.0, 1.0, 3.0]
    assert codes.indices.flatten().tolist() == [2, 0, 2]


def test_threshold_is_strict_and_never_below_zero():
    rows = ops.threshold_encode(
        tensor([[1.0, 2.0, -1.0, 0.0], [5.0, 5.0, 5.0, 5.0]]), EYE4, ZERO4, tensor([1.0, 1.0, -2.0, -2.0])
    )
    assert rows.indptr.tolist() == [0, 1, 5]
    assert rows.indices.tolist() == [1, 0, 1, 2, 3]
    assert rows.values.tolist() == [2.0, 5.0, 5.0, 5.0, 5.0]


def test_threshold_marks_nan_rows():
    rows = ops.threshold_encode(tensor([[1.0, 0, 0, 0], [torch.nan, 1, 1, 1]]), EYE4, ZERO4, 0.0)
    assert rows.indptr.tolist() == [0, 1, 2]
    assert rows.indices.tolist() == [0, 0]
    assert rows.values.isnan().tolist() == [False, True]


def test_decode_adds_the_kept_rows():
    w_dec = tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])
    codes = TopKCodes(tensor([[3.0, 1.0], [2.0, 0.0]]), tensor([[2, 0], [1, 0]], dtype=torch.int32))
    assert ops.decode(codes, w_dec, tensor([0.5, 0.0])).tolist() == [[301.5, 602.0], [20.5, 40.0]]
    csr = CsrRows(tensor([0, 0, 2]), tensor([0, 2], dtype=torch.int32), tensor([1.0, 3.0]))
    assert ops.decode(csr, w_dec, tensor([0.5, 0.0])).tolist() == [[0.5, 0.0], [301.5, 602.0]]


def test_project_is_a_matrix_product():
    csr = CsrRows(tensor([0, 2, 2]), tensor([0, 2], dtype=torch.int32), tensor([1.0, 3.0]))
    assert ops.project(csr, tensor([[1.0], [10.0], [100.0]])).tolist() == [[301.0], [0.0]]


POOL_CODES = TopKCodes(
    tensor([[4.0, 2.0], [6.0, 0.0], [1.0, -1.0]]), tensor([[3, 1], [3, 0], [2, 1]], dtype=torch.int32)
)


@pytest.mark.parametrize(
    ("mode", "indices", "values"),
    [
        ("sum", [1, 3, 1, 2], [2.0, 10.0, -1.0, 1.0]),
        ("mean", [1, 3, 1, 2], [1.0, 5.0, -1.0, 1.0]),
        ("max", [1, 3, 1, 2], [2.0, 6.0, -1.0, 1.0]),
        ("count", [1, 3, 1, 2], [1.0, 2.0, 1.0, 1.0]),
        ("last", [3, 1, 2], [6.0, -1.0, 1.0]),
    ],
)
def test_pool_modes(mode, indices, values):
    pooled = ops.segment_pool(POOL_CODES, tensor([0, 2, 2, 3]), 5, mode)
    first = 1 if mode == "last" else 2
    assert pooled.indptr.tolist() == [0, first, first, first + 2]
    assert pooled.indices.tolist() == indices
    assert pooled.values.tolist() == values


def test_pool_max_counts_absent_as_zero_and_sum_drops_exact_zero():
    codes = TopKCodes(tensor([[-1.0], [-2.0], [1.0], [-1.0]]), tensor([[0], [1], [2], [2]], dtype=torch.int32))
    assert ops.segment_pool(codes, tensor([0, 2, 4]), 3, "max").values.tolist() == [1.0]
    assert ops.segment_pool(codes, tensor([0, 2, 4]), 3, "sum").indices.tolist() == [0, 1]


def test_kmeans_assign_euclidean_and_cosine():
    rows = tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 2.0]])
    centroids = tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    labels, score = ops.kmeans_assign(rows, centroids)
    assert labels.tolist() == [0, 1, 1]
    assert score.tolist() == [16.0, 1.0, 1.0]
    labels, score = ops.kmeans_assign(rows, centroids, metric="cosine")
    assert labels.tolist() == [1, 0, 1]
    torch.testing.assert_close(score, tensor([0.2, 1.0, 0.0]))


def test_kmeans_update_sums_and_counts():
    rows = tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    csr = CsrRows(tensor([0, 2, 4, 6]), tensor([0, 1] * 3, dtype=torch.int32), rows.flatten())
    for given, width in ((rows, None), (csr, 2)):
        sums, counts = ops.kmeans_update(given, tensor([2, 0, 2], dtype=torch.int32), 3, n_latents=width)
        assert sums.tolist() == [[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]]
        assert counts.tolist() == [1, 0, 2]


def test_kmeans_refuses_nan():
    with pytest.raises(NonFiniteError, match="first: row 1"):
        ops.kmeans_assign(tensor([[1.0], [torch.nan]]), tensor([[0.0]]))


def test_k_beyond_the_latents():
    with pytest.raises(InputError, match="k must be from 1 to the number of latents 4; got 5"):
        ops.topk_encode(torch.zeros(1, 4), EYE4, ZERO4, 5)
