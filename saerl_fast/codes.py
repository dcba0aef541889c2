"""The two forms a set of sparse rows takes: k per row, and compressed rows (CSR)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TopKCodes(NamedTuple):
    """Exactly k kept latents per row, values descending."""

    values: Tensor
    """[N, k] float32"""
    indices: Tensor
    """[N, k] int32, distinct within a row"""


class CsrRows(NamedTuple):
    """Any number of kept latents per row: row i holds the entries indptr[i] : indptr[i + 1]."""

    indptr: Tensor
    """[N + 1] int64, starts at 0, never falls"""
    indices: Tensor
    """[nnz] int32, ascending and distinct within a row"""
    values: Tensor
    """[nnz] float32"""
