"""Rows of length 1 to learn directions from, and their transpose: compiled, or by scipy where nothing is compiled."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from saerl_fast.kernels import native, sparse_cpu
from saerl_fast.ops import CsrRows
from saerl_fast.signals.counted_rows import as_tensors
from saerl_fast.signals.scaling import transform_rows, unit_length


def unit_sample(
    rows: sparse.csr_array, chosen: NDArray[np.int64], value_transform: str, weights: NDArray[np.float64]
) -> sparse.csr_array:
    """f(row) / |f(row) * weights| of the rows chosen [n], in that order; a zero row stays zero. Checked rows."""
    if native.missing() or value_transform == "log1p":
        return unit_length(transform_rows(rows[chosen], value_transform), weights)
    sample = sparse_cpu.unit_sample(
        as_tensors(rows), torch.from_numpy(chosen), rows.shape[1],
        torch.from_numpy(weights.astype(np.float32)), value_transform == "sqrt",
    )  # fmt: skip
    indptr, indices, values = (part.numpy() for part in sample)
    return sparse.csr_array((values, indices, indptr), shape=(len(chosen), rows.shape[1]))


def transposed(rows: sparse.csr_array) -> CsrRows:
    """The columns of checked rows as rows."""
    if native.missing():
        return as_tensors(sparse.csr_array(rows.T))
    return sparse_cpu.transposed(as_tensors(rows), rows.shape[1])
