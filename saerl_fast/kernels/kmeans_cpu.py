"""The two steps of k-means on the CPU (csrc/cpu/sparse_product.h, csrc/cpu/cluster_sums.h), and seeds for them.

    label = argmin_k |c_k|^2 - 2 x.c_k     or     argmin_k -x.c_k / |c_k|

Products are compared as they are made: no [S, K] array exists, and no sparse row is made dense. Dense rows
go through the same loops rather than through torch's product, whose bits depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saerl_fast.kernels import native, sparse_cpu

if TYPE_CHECKING:
    from saerl_fast.codes import CsrRows

BLOCK_NUMBERS = 2**24
"""Upper bound on the numbers of dense rows that are converted or copied at once (64 MB)."""


def assign(rows: Tensor | CsrRows, centroids: Tensor, metric: str, isa: str = "auto") -> tuple[Tensor, Tensor]:
    """The contract of `ops.kmeans_assign`; arguments are checked, none is float64."""
    centres = centroids.float().contiguous()
    n_rows = rows.shape[0] if isinstance(rows, Tensor) else rows.indptr.shape[0] - 1
    labels = torch.empty(n_rows, dtype=torch.int32)
    score = torch.empty(n_rows, dtype=torch.float32)
    given = native.address(centres), len(centres), metric == "cosine"
    if isinstance(rows, Tensor):
        for block in _blocks(rows):
            x = rows[block].float().contiguous()
            native.module().nearest_dense(
                native.address(x), *x.shape, x.shape[1], *given,
                native.address(labels[block]), native.address(score[block]), native.threads(), isa,
            )  # fmt: skip
    else:
        parts = sparse_cpu.in_memory(rows)
        native.module().nearest_sparse(
            *(native.address(part) for part in parts), n_rows, centres.shape[1], *given,
            native.address(labels), native.address(score), native.threads(), isa,
        )  # fmt: skip
    return labels, score


def _blocks(rows: Tensor) -> Iterator[slice]:
    """All rows at once where they can be read as they lie; else as many as are converted at once."""
    n_rows, n_latents = rows.shape
    ready = rows.dtype == torch.float32 and rows.is_contiguous()
    step = max(1, n_rows if ready else BLOCK_NUMBERS // max(1, n_latents))
    return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def far_rows(rows: Tensor, may_seed: Tensor, draws: Tensor, isa: str = "auto") -> Tensor:
    """Greedy k-means++ on dense rows (csrc/cpu/far_rows.h): the places of up to K different rows, int64.

    rows [S, M] float32, contiguous   may_seed [S] bool   draws [K, trials] float64, each in [0, 1)
    """
    chosen = torch.empty(len(draws), dtype=torch.int64)
    found = native.module().far_rows(
        native.address(rows), native.address(may_seed), *rows.shape, native.address(draws), *draws.shape,
        native.address(chosen), native.threads(), isa,
    )  # fmt: skip
    return chosen[:found]


def update(
    rows: Tensor | CsrRows, labels: Tensor, n_clusters: int, n_latents: int, isa: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The contract of `ops.kmeans_update`; arguments are checked, none is float64."""
    sums = torch.empty(n_clusters, n_latents, dtype=torch.float32)
    counts = torch.empty(n_clusters, dtype=torch.int64)
    labels = labels.to(torch.int32).contiguous()
    result = native.address(labels), n_clusters, native.address(sums), native.address(counts), native.threads()
    if isinstance(rows, Tensor):
        x = rows.float().contiguous()
        native.module().sum_dense(native.address(x), *x.shape, n_latents, *result, isa)
    else:
        parts = sparse_cpu.in_memory(rows)
        native.module().sum_sparse(*(native.address(part) for part in parts), len(labels), n_latents, *result)
    return sums, counts
