"""The two steps of k-means on a GPU: assignment of sparse and of dense rows, sums of dense rows.

    label = argmin_k bias_k + factor * x.c_k      bias, factor = |c_k|^2, -2    or, by cosine, 0, -1
    sums_k = sum of the rows of cluster k

Assignment goes through tensor cores and a bound (nearest_triton.py) where that pays, and through float32 products
elsewhere (nearest_exact.py): the floors stand there. Sums read each row once from memory: labels are sorted, and runs
of equal ones cut into pieces and added up (gathered_sums.py). Not timed yet: docs/measured.md.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from saerl_fast.codes import CsrRows
from saerl_fast.kernels import nearest_screened
from saerl_fast.kernels.gathered_sums import run_sums
from saerl_fast.kernels.nearest_exact import Centres, Found, exact_nearest
from saerl_fast.kernels.pieces import cut, grouped

SMALLEST_NORM = 1e-12
"""A shorter row has cosine 0, as in torch.nn.functional.normalize."""
FEWEST_PIECES = 512
"""Rows of a cluster are cut so that about so many pieces exist at least: four per multiprocessor."""
SHORTEST = 128
"""Rows that a piece may have in any case."""


def assign(rows: Tensor | CsrRows, centroids: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """The contract of `ops.kmeans_assign`; shapes and types are checked, indices are not, none is float64."""
    found = nearest(rows, centres_of(centroids, metric))
    if metric == "cosine":
        cosine = found.nearest / found.squares.sqrt().clamp(min=SMALLEST_NORM)
        return found.labels, (1 + cosine).float().clamp(min=0)
    return found.labels, (found.nearest + found.squares).float().clamp(min=0)


def centres_of(centroids: Tensor, metric: str) -> Centres:
    """What distances to the centroids [K, M] are made of."""
    table = centroids.float()
    if metric == "cosine":
        table, factor = functional.normalize(table), -1.0
        bias = torch.zeros(len(table), device=table.device)
    else:
        bias, factor = torch.linalg.vector_norm(table, dim=1, dtype=torch.float64).square().float(), -2.0
    # sparse rows would pass over an infinity where they hold zero; so every distance to it is made NaN
    bias = torch.where(centroids.isfinite().all(dim=1), bias, torch.nan)
    return Centres(table.contiguous(), bias, factor)


def nearest(rows: Tensor | CsrRows, centres: Centres) -> Found:
    """The nearest centroid of each row."""
    given = rows if isinstance(rows, Tensor) else CsrRows(*(part.contiguous() for part in rows))
    n_rows = given.shape[0] if isinstance(given, Tensor) else given.indptr.shape[0] - 1
    device = centres.table.device
    found = Found(
        torch.empty(n_rows, dtype=torch.int32, device=device),
        torch.empty(n_rows, dtype=torch.float32, device=device),
        torch.empty(n_rows, dtype=torch.float64, device=device),
    )
    n_clusters, n_latents = centres.table.shape
    if n_rows and nearest_screened.pays(given, n_latents, n_clusters):
        nearest_screened.screened_nearest(given, centres, found)
    elif n_rows:
        exact_nearest(given, centres, found)
    return found


def update(rows: Tensor, labels: Tensor, n_clusters: int, n_latents: int) -> tuple[Tensor, Tensor]:
    """The contract of `ops.kmeans_update` for dense rows; arguments are checked, none is float64."""
    order, starts = grouped(labels, n_clusters)
    most = max(SHORTEST, -(-len(rows) // FEWEST_PIECES))
    side_by_side = rows if rows.stride(1) == 1 and rows.stride(0) >= 0 else rows.contiguous()
    return run_sums(cut(starts, len(rows), most), order, None, side_by_side), starts.diff()
