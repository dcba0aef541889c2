"""The random data is what it says, and the same each time."""

import numpy as np
import pytest
import torch

from saerl_fast.bench.data import encoder, mean_centroids, pooled_rows, sample_offsets, token_codes, zipf_ranks


@pytest.mark.parametrize(("k", "latents"), [(1, 1), (5, 5), (32, 40), (32, 4096)])
def test_ranks_are_distinct_and_in_range(k, latents):
    ranks = zipf_ranks(500, k, latents, np.random.default_rng(0))
    assert ranks.shape == (500, k)
    assert ranks.min() >= 0
    assert ranks.max() < latents
    assert (np.diff(ranks, axis=1) > 0).all()


def test_low_ranks_are_frequent():
    counts = np.bincount(zipf_ranks(4000, 8, 1000, np.random.default_rng(0)).ravel(), minlength=1000)
    assert counts[:10].mean() > 5 * counts[100:200].mean() > 5 * counts[900:].mean()


@pytest.mark.parametrize("density", [0.03, 0.2])
def test_pooled_rows_have_the_density_and_valid_indices(density):
    rows = pooled_rows(300, 1000, density)
    assert len(rows.indices) / (300 * 1000) == pytest.approx(density, rel=0.05)
    row = torch.arange(300).repeat_interleave(rows.indptr.diff())
    assert (torch.diff(row * 1000 + rows.indices) > 0).all()
    assert rows.values.min() > 0
    centroids = mean_centroids(rows, 1000, 7)
    assert centroids.shape == (7, 1000)
    assert centroids.isfinite().all()


def test_codes_are_positive_distinct_and_descending():
    codes = token_codes(200, 16, 500)
    assert (codes.values > 0).all()
    assert (codes.values.diff(dim=1) <= 0).all()
    assert all(len(set(row)) == 16 for row in codes.indices.tolist())


def test_lengths_lie_between_the_bounds():
    lengths = sample_offsets(500, 50, 60).diff()
    assert (lengths.min(), lengths.max()) == (50, 60)


def test_the_same_arguments_give_the_same_data():
    assert all(torch.equal(a, b) for a, b in zip(encoder(5, 8, 100), encoder(5, 8, 100), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(pooled_rows(9, 100, 0.1), pooled_rows(9, 100, 0.1), strict=True))
