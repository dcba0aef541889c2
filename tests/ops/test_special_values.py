"""Ties, NaN, infinities, rows without a positive score: written out by hand, for every backend."""

import pytest
import torch

from saerl_fast import ops
from saerl_fast.ops import CsrRows, TopKCodes
from tests.op_table import OPERATIONS, absent

M = 700
EYE, ZERO = torch.eye(M), torch.zeros(M)


@pytest.fixture(params=OPERATIONS["topk_encode"].backends)
def select(request):
    """Scores in, codes out: w_enc is the identity, so that x itself is selected from."""
    if reason := absent(request.param):
        pytest.skip(reason)

    def encode(scores, k, relu=False):
        return ops.topk_encode(scores, EYE, ZERO, k, relu=relu, backend=request.param)

    return encode


@pytest.mark.parametrize("k", [1, 5, M])
@pytest.mark.parametrize("value", [3.0, 0.0, -3.0])
def test_all_equal_takes_the_lowest_indices(select, value, k):
    codes = select(torch.full((2, M), value), k)
    assert codes.indices.tolist() == [list(range(k))] * 2
    assert (codes.values == value).all()


def test_a_tie_across_the_boundary_goes_to_the_lower_index(select):
    scores = torch.zeros(1, M)
    scores[0, [650, 20, 300]] = 5.0
    scores[0, 400] = 9.0
    assert select(scores, 3).indices.tolist() == [[400, 20, 300]]


def test_minus_zero_ties_with_zero(select):
    scores = torch.zeros(1, M)
    scores[0, ::2] = -0.0
    assert select(scores, 4).indices.tolist() == [[0, 1, 2, 3]]


def test_all_negative_gives_zeros_at_the_best_indices(select):
    scores = -torch.arange(1.0, M + 1)[None].flip(1)
    codes = select(scores, 3, relu=True)
    assert codes.values.tolist() == [[0.0, 0.0, 0.0]]
    assert codes.indices.tolist() == [[M - 1, M - 2, M - 3]]
    assert select(scores, 3).values.tolist() == [[-1.0, -2.0, -3.0]]


def nan_after_product(select, position):
    """A NaN in x makes the whole row of the product NaN; the other row is unharmed."""
    scores = torch.arange(2.0 * M).view(2, M)
    scores[0, position] = torch.nan
    return select(scores, 3)


@pytest.mark.parametrize("position", [0, 13, M - 1])
def test_nan_row_is_marked(select, position):
    codes = nan_after_product(select, position)
    assert codes.values[0].isnan().all()
    assert codes.indices.tolist() == [[0, 1, 2], [M - 1, M - 2, M - 3]]


@pytest.mark.parametrize("relu", [True, False])
def test_one_nan_bias_marks_every_row(select, relu):
    b_enc = ZERO.clone()
    b_enc[M - 2] = torch.nan
    for backend in OPERATIONS["topk_encode"].backends:
        if absent(backend):
            continue
        codes = ops.topk_encode(torch.ones(3, M), EYE, b_enc, 2, relu=relu, backend=backend)
        assert codes.values.isnan().all()
        assert codes.indices.tolist() == [[0, 1]] * 3


def test_infinities_come_first_and_last(select):
    # through the bias: an infinite x would make NaN of the zeros of the identity
    b_enc = torch.arange(float(M))
    b_enc[[7, 600]] = torch.inf
    b_enc[[0, 500]] = -torch.inf
    for backend in OPERATIONS["topk_encode"].backends:
        if absent(backend):
            continue
        codes = ops.topk_encode(torch.zeros(1, M), EYE, b_enc, M, relu=False, backend=backend)
        assert codes.indices[0, :3].tolist() == [7, 600, M - 1]
        assert codes.indices[0, -2:].tolist() == [0, 500]
        assert codes.values[0, :2].tolist() == [torch.inf, torch.inf]
        assert codes.values[0, -1] == -torch.inf


def test_threshold_keeps_infinity():
    rows = ops.threshold_encode(torch.zeros(1, 3), torch.zeros(3, 3), torch.tensor([1.0, torch.inf, -torch.inf]), 2.0)
    assert rows.indices.tolist() == [1]
    assert rows.values.tolist() == [torch.inf]


@pytest.mark.parametrize("mode", ["mean", "max", "sum", "last"])
def test_pool_keeps_nan(mode):
    codes = TopKCodes(torch.tensor([[1.0], [torch.nan], [2.0]]), torch.tensor([[1], [1], [0]]).int())
    pooled = ops.segment_pool(codes, torch.tensor([0, 2, 3]), 3, mode)
    assert pooled.values.isnan().tolist() == [True, False]


def test_assign_with_zero_row_and_zero_centroid():
    rows = CsrRows(torch.tensor([0, 0, 1]), torch.tensor([1]).int(), torch.tensor([2.0]))
    labels, score = ops.kmeans_assign(rows, torch.tensor([[0.0, 0.0], [0.0, 3.0]]), metric="cosine")
    assert labels.tolist() == [0, 1]
    assert score.tolist() == [1.0, 0.0]
