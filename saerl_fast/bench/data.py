"""Random data with the shape of the real thing: Zipf-distributed features, sums of few directions, topics.

Frequencies: feature of rank r has weight 1 / (r + 8). Seeds are fixed; the same arguments give the same data.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from saerl_fast.ops import CsrRows, TopKCodes

ACTIVE = 64
"""Directions that one activation is a sum of."""
NOISE = 0.1
FLATTEN = 8
TOPICS = 20
BLOCK_ROWS = 1024

Integers = npt.NDArray[np.int64]


class Encoder(NamedTuple):
    """Activations x [N, D] and the encoder that reads them: w_enc [M, D] with unit rows, b_enc [M], b_dec [D]."""

    x: Tensor
    w_enc: Tensor
    b_enc: Tensor
    b_dec: Tensor


def zipf_ranks(rows: int, k: int, latents: int, rng: np.random.Generator) -> Integers:
    """k distinct ranks in each row [rows, k], ascending: one from each k-th of the probability."""
    weights = np.cumsum(1.0 / (np.arange(latents - k + 1) + FLATTEN))
    strata = (np.arange(k) + rng.random((rows, k))) / k
    ranks = np.minimum(np.searchsorted(weights, strata * weights[-1]), latents - k)
    # neighbours may have drawn the same frequent feature: push the later one on
    order = np.arange(k)
    return np.asarray(np.maximum.accumulate(ranks - order, axis=1) + order)


def encoder(rows: int, width: int, latents: int) -> Encoder:
    """Activations that are sums of ACTIVE of the encoder's directions, an offset and noise, in float32."""
    rng = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    w_enc = functional.normalize(torch.randn(latents, width, generator=generator))
    active = min(ACTIVE, latents)
    directions = torch.from_numpy(rng.permutation(latents)[zipf_ranks(rows, active, latents, rng)])
    strengths = 0.5 + torch.empty(rows, active).exponential_(generator=generator)
    b_dec = torch.randn(width, generator=generator)
    x = functional.embedding_bag(directions, w_enc, mode="sum", per_sample_weights=strengths)
    x += NOISE * torch.randn(rows, width, generator=generator) + b_dec
    b_enc = -0.2 * torch.rand(latents, generator=generator)
    return Encoder(x, w_enc, b_enc, b_dec)


def token_codes(tokens: int, k: int, latents: int) -> TopKCodes:
    """What a TopK encoder gives for `tokens` tokens: positive values, descending."""
    rng = np.random.default_rng(1)
    ids = rng.permutation(latents).astype(np.int32)
    indices = np.empty((tokens, k), dtype=np.int32)
    for start in range(0, tokens, 16 * BLOCK_ROWS):
        block = slice(start, min(start + 16 * BLOCK_ROWS, tokens))
        indices[block] = ids[zipf_ranks(block.stop - start, k, latents, rng)]
    generator = torch.Generator().manual_seed(1)
    values = 0.1 + torch.empty(tokens, k).exponential_(generator=generator).sort(dim=1, descending=True).values
    return TopKCodes(values, torch.from_numpy(indices))


def sample_offsets(samples: int, shortest: int, longest: int) -> Tensor:
    """Offsets [S + 1] of samples of shortest to longest tokens."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(shortest, longest + 1, (samples,), generator=generator)
    return functional.pad(lengths.cumsum(0), (1, 0))


def pooled_rows(rows: int, latents: int, density: float) -> CsrRows:
    """Rows as mean pooling leaves them: positive values, `density` of the latents on average, TOPICS topics.

    Topics share the most frequent eighth of the features. Rows differ in length, from about 0.7 to 1.3 of the mean.
    """
    rng = np.random.default_rng(3)
    ids = np.tile(np.arange(latents, dtype=np.int32), (TOPICS, 1))
    ids[:, latents // 8 :] = rng.permuted(ids[:, latents // 8 :], axis=1)
    topic = rng.integers(TOPICS, size=rows)
    most = max(1, min(latents, round(1.3 * density * latents)))
    counts, indices = [], []
    for start in range(0, rows, BLOCK_ROWS):
        block = topic[start : start + BLOCK_ROWS]
        ranks = zipf_ranks(len(block), most, latents, rng)
        chosen = np.sort(ids[block[:, None], ranks], axis=1)
        kept = rng.random(chosen.shape) < rng.uniform(0.54, 1.0, size=(len(block), 1))
        kept[:, 0] = True
        counts.append(kept.sum(axis=1))
        indices.append(chosen[kept])
    joined = np.concatenate(indices)
    indptr = functional.pad(torch.from_numpy(np.concatenate(counts)).long().cumsum(0), (1, 0))
    values = (0.02 + rng.exponential(0.3, size=len(joined))).astype(np.float32)
    return CsrRows(indptr, torch.from_numpy(joined), torch.from_numpy(values))


def mean_centroids(csr: CsrRows, latents: int, clusters: int) -> Tensor:
    """Centroids [K, M] as a fit under way has them: the means of a few rows each, float32."""
    rng = np.random.default_rng(4)
    rows = len(csr.indptr) - 1
    centroids = np.zeros((clusters, latents), dtype=np.float32)
    indptr, indices, values = (part.numpy() for part in csr)
    for cluster, members in enumerate(rng.integers(rows, size=(clusters, 5))):
        for row in members:
            entries = slice(indptr[row], indptr[row + 1])
            centroids[cluster, indices[entries]] += values[entries] / 5
    return torch.from_numpy(centroids)
