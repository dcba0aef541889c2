"""The numerical operations: argument checks and choice of backend in front of interchangeable bodies.

`reference.py` holds each operation in plain PyTorch and is its specification.
"""

from saerl_fast.codes import CsrRows, SpacedRows, TopKCodes
from saerl_fast.kernels.csr_capacity import ENTRIES_PER_ROW
from saerl_fast.kernels.screening_counts import ScreeningCounts, screening_counts
from saerl_fast.ops.encode import threshold_encode, threshold_encode_spaced, topk_encode, topk_encode_certified
from saerl_fast.ops.kmeans import kmeans_assign, kmeans_assign_queued, kmeans_update, kmeans_update_queued
from saerl_fast.ops.rows import decode, project, project_weighted, segment_pool, segment_pool_spaced
from saerl_fast.ops.wish import backend

__all__ = [
    "ENTRIES_PER_ROW",
    "CsrRows",
    "ScreeningCounts",
    "SpacedRows",
    "TopKCodes",
    "backend",
    "decode",
    "kmeans_assign",
    "kmeans_assign_queued",
    "kmeans_update",
    "kmeans_update_queued",
    "project",
    "project_weighted",
    "screening_counts",
    "segment_pool",
    "segment_pool_spaced",
    "threshold_encode",
    "threshold_encode_spaced",
    "topk_encode",
    "topk_encode_certified",
]
