"""Made-up features with a known truth: sparse, non-negative, heavy-tailed, as mean-pooled SAE features are."""

import numpy as np
from scipy import sparse


def clusters(n_rows=400, width=60, n_clusters=4, seed=0):
    """Rows of `n_clusters` kinds that share no feature but one block of noise. -> CSR [S, M], kinds [S]"""
    rng = np.random.default_rng(seed)
    kind = rng.integers(n_clusters, size=n_rows)
    block = width // (n_clusters + 1)
    dense = np.zeros((n_rows, width), dtype=np.float32)
    for k in range(n_clusters):
        here = np.flatnonzero(kind == k)
        dense[np.ix_(here, np.arange(k * block, (k + 1) * block))] = rng.gamma(4, 0.5, (len(here), block))
    noise = rng.gamma(1, 0.2, (n_rows, width - n_clusters * block))
    dense[:, n_clusters * block :] = noise * (rng.random(noise.shape) < 0.3)
    return sparse.csr_matrix(dense), kind


def pooled(n_rows=400, width=200, density=0.2, seed=0):
    """Features without any structure. -> CSR [S, M] float32"""
    rng = np.random.default_rng(seed)
    values = rng.gamma(1, 0.5, (n_rows, width)) * (rng.random((n_rows, width)) < density)
    return sparse.csr_matrix(values.astype(np.float32))


def graded(n_rows=400, width=200, noise=0.3, seed=0):
    """Features, and a label that five of them carry: the sum of their square roots, and noise."""
    rng = np.random.default_rng(seed + 1)
    rows = pooled(n_rows, width, seed=seed)
    carriers = np.arange(5) * (width // 5)
    signal = np.sqrt(rows[:, carriers].toarray()).sum(axis=1)
    return rows, (signal + noise * rng.standard_normal(n_rows)).astype(np.float64), carriers
