"""The proofs see one wrong entry, and allow what the boundary-gap rule allows and no more."""

import pytest
import torch

from saerl_fast import ops
from saerl_fast.bench import proof
from saerl_fast.bench.data import Encoder, encoder, mean_centroids, pooled_rows, sample_offsets, token_codes
from saerl_fast.ops import CsrRows, TopKCodes

K = 8


@pytest.fixture(scope="module")
def inputs():
    return encoder(40, 24, 300)


@pytest.fixture(scope="module")
def scores(inputs):
    return torch.addmm(inputs.b_enc, inputs.x - inputs.b_dec, inputs.w_enc.T)


def topk(inputs, k=K):
    codes = ops.topk_encode(inputs.x, inputs.w_enc, inputs.b_enc, k, b_dec=inputs.b_dec, backend="reference")
    return TopKCodes(codes.values.clone(), codes.indices.clone())


def exactly(gap):
    """One row whose scores are 3, 2 + gap, 2, 1, 0 and whose slack is about 3e-6 at the second."""
    w = torch.tensor([[3.0], [2.0 + gap], [2.0], [1.0], [0.0]])
    return Encoder(torch.ones(1, 1), w, torch.zeros(5), torch.zeros(1))


def test_the_true_codes_pass(inputs):
    assert proof.encoded(topk(inputs), inputs, K).failure is None


def test_the_next_latent_in_place_of_the_kth_is_seen(inputs):
    codes, more = topk(inputs), topk(inputs, K + 1)
    codes.indices[3, -1], codes.values[3, -1] = more.indices[3, -1], more.values[3, -1]
    assert "1 below it were kept" in proof.encoded(codes, inputs, K).failure


@pytest.mark.parametrize(("gap", "passes"), [(1e-6, True), (1e-4, False)])
def test_only_latents_within_the_gap_stand_for_each_other(gap, passes):
    row = exactly(gap)
    codes = TopKCodes(torch.tensor([[3.0, 2.0]]), torch.tensor([[0, 2]], dtype=torch.int32))
    verdict = proof.encoded(codes, row, 2)
    assert (verdict.failure is None) == passes
    if passes:
        assert verdict.facts["rows_by_gap_rule"] == 1.0


def test_a_doubled_latent_a_wrong_value_and_a_wrong_order_are_seen(inputs):
    doubled, value, order = topk(inputs), topk(inputs), topk(inputs)
    doubled.indices[5, 1] = doubled.indices[5, 0]
    assert "twice" in proof.encoded(doubled, inputs, K).failure
    value.values[0, 0] *= 1 + 1e-4
    assert "off by" in proof.encoded(value, inputs, K).failure
    flipped = TopKCodes(order.values.flip(1), order.indices.flip(1))
    assert "descending" in proof.encoded(flipped, inputs, K).failure
    assert "wanted values" in proof.encoded(TopKCodes(order.values[1:], order.indices[1:]), inputs, K).failure


def test_a_nan_is_seen(inputs):
    codes = topk(inputs)
    codes.values[0] = torch.nan
    assert proof.encoded(codes, inputs, K).failure is not None


def test_select_wants_the_bits_and_the_lower_index(scores):
    values, order = scores.sort(dim=1, descending=True, stable=True)
    good = values[:, :K], order[:, :K].int()
    assert proof.selected(good, scores, K).failure is None
    tied = torch.ones(1, 4)
    assert "indices" in proof.selected((torch.ones(1, 2), torch.tensor([[0, 2]])), tied, 2).failure
    assert "values" in proof.selected((torch.nextafter(good[0], torch.tensor(9.0)), good[1]), scores, K).failure


def dense(codes, latents=300):
    return torch.zeros(len(codes.indices), latents).scatter_(1, codes.indices.long(), codes.values)


def test_dense_features_are_held_to_the_same(inputs):
    codes, more = topk(inputs), topk(inputs, K + 1)
    assert proof.densely_encoded(dense(codes), inputs, K).failure is None
    assert "more than k" in proof.densely_encoded(dense(more), inputs, K).failure
    lost, value = dense(codes), dense(codes)
    lost[3, codes.indices[3, 0]] = 0
    assert "1 latents above the boundary are missing" in proof.densely_encoded(lost, inputs, K).failure
    value[0, codes.indices[0, 0]] *= 1 + 1e-4
    assert "off by" in proof.densely_encoded(value, inputs, K).failure
    codes.indices[3, -1], codes.values[3, -1] = more.indices[3, -1], more.values[3, -1]
    assert "1 below it were kept" in proof.densely_encoded(dense(codes), inputs, K).failure
    assert "wanted [40, 300]" in proof.densely_encoded(dense(codes)[1:], inputs, K).failure


def test_a_row_of_fewer_than_k_positive_scores_has_fewer_features(inputs):
    few = inputs._replace(b_enc=inputs.b_enc - torch.linalg.vector_norm(inputs.x, dim=1).mean())
    codes = topk(few)
    assert (codes.values == 0).any()
    assert proof.densely_encoded(dense(codes), few, K).failure is None


def thresholded(inputs, theta):
    return ops.threshold_encode(inputs.x, inputs.w_enc, inputs.b_enc, theta, b_dec=inputs.b_dec, backend="reference")


def test_threshold_rows(inputs):
    csr = thresholded(inputs, 1.0)
    assert proof.thresholded(csr, inputs, 1.0).failure is None
    assert "are missing" in proof.thresholded(thresholded(inputs, 1.1), inputs, 1.0).failure
    assert "below it were kept" in proof.thresholded(csr, inputs, 1.1).failure
    wrong = csr._replace(values=csr.values.clone())
    wrong.values[-1] += 1e-3
    assert "off by" in proof.thresholded(wrong, inputs, 1.0).failure
    swapped = csr._replace(indices=csr.indices.clone())
    swapped.indices[:2] = csr.indices[:2].flip(0)
    assert "ascend" in proof.thresholded(swapped, inputs, 1.0).failure
    assert "indptr" in proof.thresholded(csr._replace(indptr=csr.indptr[1:]), inputs, 1.0).failure


def test_pooled_rows():
    offsets = sample_offsets(6, 1, 9)
    codes = token_codes(int(offsets[-1]), 4, 100)
    good = ops.segment_pool(codes, offsets, 100, "mean", backend="reference")
    assert proof.pooled(good, codes, offsets, 100).failure is None
    value = good._replace(values=good.values.clone())
    value.values[7] *= 1 + 1e-5
    assert "mean is off" in proof.pooled(value, codes, offsets, 100).failure
    cut = CsrRows(good.indptr.clamp(max=len(good.indices) - 1), good.indices[:-1], good.values[:-1])
    assert "union" in proof.pooled(cut, codes, offsets, 100).failure


def iteration(csr, centroids):
    labels, _ = ops.kmeans_assign(csr, centroids, backend="reference")
    sums, counts = ops.kmeans_update(csr, labels, len(centroids), n_latents=centroids.shape[1], backend="reference")
    return labels, sums, counts


def test_an_iteration_of_kmeans():
    csr = pooled_rows(60, 200, 0.2)
    centroids = mean_centroids(csr, 200, 5)
    labels, sums, counts = iteration(csr, centroids)
    assert proof.clustered((labels, sums, counts), csr, centroids).failure is None
    moved = labels.clone()
    moved[9] = (moved[9] + 1) % 5
    assert "1 rows are not with their nearest" in proof.clustered((moved, sums, counts), csr, centroids).failure
    assert "sum is off" in proof.clustered((labels, sums * (1 + 1e-4), counts), csr, centroids).failure
    assert "counts" in proof.clustered((labels, sums, counts + 1), csr, centroids).failure
    assert "do not fit" in proof.clustered((labels - 1, sums, counts), csr, centroids).failure
