"""kmeans_update of sparse rows on an NVIDIA GPU: rows by cluster, in pieces.

    sums[c] = sum of the rows of cluster c;   counts[c] = how many they are

Floor:  each entry once: 100,000 rows of 24,576 latents, a tenth of them kept, are 2 GB, 0.5 ms of an H200's memory; and
        a dense row of 98 kB for each piece, written and read.
Trick:  csrc/cuda/cluster_sums.cu. The labels are sorted and cut on the device (pieces.py): how many pieces there can be
        follows from the shapes, so nobody waits to know how many there are. Not timed yet: docs/measured.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saerl_fast.kernels import native
from saerl_fast.kernels.pieces import cut, grouped
from saerl_fast.kernels.pool_cuda import shared_bytes
from saerl_fast.kernels.scores_cuda import queue_of

if TYPE_CHECKING:
    from saerl_fast.codes import CsrRows

FEWEST_PIECES = 512
"""Rows of a cluster are cut so that about so many pieces exist at least: four per multiprocessor. Each takes a dense
row of M numbers until it is added up."""
SHORTEST = 64
"""Rows that a piece may have in any case."""


def update(csr: CsrRows, labels: Tensor, n_clusters: int, n_latents: int) -> tuple[Tensor, Tensor]:
    """The contract of `ops.kmeans_update` for sparse rows; arguments are checked, none is float64."""
    order, starts = grouped(labels, n_clusters)
    most = max(SHORTEST, -(-len(labels) // FEWEST_PIECES))
    pieces = cut(starts, len(labels), most)
    indptr, values = csr.indptr.contiguous(), csr.values.float().contiguous()
    columns = csr.indices.to(torch.int32).contiguous()
    sums = torch.empty(n_clusters, n_latents, dtype=torch.float32, device=labels.device)
    parts = torch.empty(pieces.most_parts, n_latents, dtype=torch.float32, device=labels.device)
    native.module().cluster_sums_cuda(
        native.address(indptr), native.address(columns), native.address(values), len(labels), len(columns), n_latents,
        native.address(pieces.begins), native.address(pieces.ends), native.address(pieces.targets),
        len(pieces.targets), native.address(order), native.address(pieces.first_parts), native.address(pieces.counts),
        n_clusters, shared_bytes(labels.device), native.address(parts), native.address(sums), *queue_of(sums),
    )  # fmt: skip
    return sums, starts.diff()
