"""Rows that are checked and counted in one look at their entries, where there are compiled kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from saerl_fast.kernels import native, sparse_cpu
from saerl_fast.ops import CsrRows, check
from saerl_fast.signals.inputs import checked_rows, validated

Counts = NDArray[np.int64]


def counted_rows(estimator: Any, rows: Any, *, reset: bool) -> tuple[sparse.csr_array, Counts]:
    """`inputs.checked_rows` as CSR, with its errors, and for each feature the number of rows that have it [M]."""
    if not sparse.issparse(rows) or native.missing():
        csr = sparse.csr_array(checked_rows(estimator, rows, reset=reset))
        return csr, rows_with(csr)
    name = type(estimator).__name__
    csr = sparse.csr_array(validated(estimator, rows, reset=reset, finite=False))
    found = _survey(name, csr)
    if not found.ascending:
        check.in_range(name, "indices", torch.from_numpy(csr.indices), csr.shape[1], "features")
        csr = csr.copy()
        csr.sum_duplicates()
        found = _survey(name, csr)
    if not found.finite:
        # scikit-learn says in its words what is wrong: with the rows given, or with the sums of doubled entries
        validated(estimator, rows, reset=reset)
        validated(estimator, csr, reset=reset)
    csr.has_canonical_format = True
    return csr, found.having.numpy()


def rows_with(rows: sparse.csr_array) -> Counts:
    """For each feature, the number of rows that have it [M]."""
    indices = rows.indices if rows.data.all() else rows.indices[rows.data != 0]
    found: Counts = torch.bincount(torch.from_numpy(indices), minlength=rows.shape[1]).numpy()
    return found


def _survey(name: str, csr: sparse.csr_array) -> sparse_cpu.Survey:
    tensors = as_tensors(csr)
    check.offsets(name, "indptr", tensors.indptr, len(tensors.indices), "the number of entries")
    return sparse_cpu.survey(tensors, csr.shape[1])


def as_tensors(rows: sparse.csr_array) -> CsrRows:
    """The rows as the operations take them; shares what is of the right type."""
    return CsrRows(
        torch.from_numpy(rows.indptr.astype(np.int64)),
        _tensor(rows.indices.astype(np.int32, copy=False)),
        _tensor(rows.data),
    )


def _tensor(array: NDArray[Any]) -> Tensor:
    # torch warns about memory that it may not write to, though nothing here writes
    return torch.from_numpy(array if array.flags.writeable else array.copy())
