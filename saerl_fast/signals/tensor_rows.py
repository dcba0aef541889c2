"""Rows for k-means that lie in torch tensors, on any device: dense, or in torch's CSR layout.

They stay where they are. What k-means decides by (labels, distances, sums of clusters) is fetched once per pass.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor

from saerl_fast.errors import DtypeError, InputError, NonFiniteError, ShapeError
from saerl_fast.ops import CsrRows
from saerl_fast.ops import check as ops_check
from saerl_fast.ops.reference import Metric, transformed
from saerl_fast.signals.cluster_rows import ClusterRows

NAME = "StreamingKMeans"


def in_tensors(rows: Any) -> TypeGuard[Tensor]:
    """Rows that numpy and scipy cannot hold where they are: on a device, or in torch's own CSR layout."""
    return isinstance(rows, Tensor) and (rows.layout == torch.sparse_csr or rows.device.type != "cpu")


def tensor_rows(estimator: Any, rows: Tensor, metric: Metric, value_transform: str, *, reset: bool) -> ClusterRows:
    """Checked, transformed and, under the cosine metric, normalised rows on the device of `rows`, float32.

    The input is not changed. Raises ShapeError, DtypeError, InputError (no rows; another width than the one learnt;
    indices that are not ascending and distinct in a row), NonFiniteError.
    """
    if rows.ndim != 2:
        raise ShapeError(f"{NAME}: rows must be [S, M]; got {list(rows.shape)}")
    if not rows.dtype.is_floating_point:
        raise DtypeError(f"{NAME}: rows must be of a floating-point type; got {rows.dtype}. Convert them with .float()")
    if rows.layout not in (torch.strided, torch.sparse_csr):
        raise InputError(f"{NAME}: rows must be dense or in the CSR layout; got {rows.layout}. Use .to_sparse_csr()")
    n_rows, width = rows.shape
    if n_rows == 0:
        raise InputError(f"{NAME}: at least one row is wanted; got {list(rows.shape)}")
    _check_width(estimator, rows, reset)
    given = rows.detach()
    if given.layout == torch.strided:
        values = _finite(transformed(given.float(), value_transform))
        squares = values.double().square().sum(dim=1)
    else:
        indptr, indices = given.crow_indices().long(), given.col_indices()
        csr = CsrRows(indptr, indices.int(), given.values().float())
        ops_check.sparse(NAME, "rows", CsrRows(indptr, indices, csr.values), width)
        _check_ascending(csr)
        values = _finite(transformed(csr.values, value_transform))
        squares = torch.segment_reduce(values.double().square(), "sum", offsets=indptr)
    if metric == "cosine":
        unit = torch.where(squares > 0, squares.rsqrt(), 0).float()
        squares = (squares > 0).double()
        if given.layout == torch.strided:
            values = values * unit[:, None]
        else:
            values = values * unit.repeat_interleave(indptr.diff(), output_size=len(values))
    tensor = values if given.layout == torch.strided else csr._replace(values=values)
    return ClusterRows(tensor, (n_rows, width), squares.cpu().numpy(), metric)


def _finite(values: Tensor) -> Tensor:
    if not bool(values.isfinite().all()):
        raise NonFiniteError(f"{NAME}: rows must be finite; they hold NaN or infinity. Remove such rows")
    return values


def _check_ascending(csr: CsrRows) -> None:
    falls = csr.indices.diff() <= 0
    # from the last entry of a row to the first of the next it may fall
    ends = csr.indptr[1:-1]
    falls[ends[(ends > 0) & (ends < len(csr.indices))] - 1] = False
    if bool(falls.any()):
        raise InputError(
            f"{NAME}: the indices of a row must be ascending and distinct. "
            "Use .to_sparse_coo().coalesce().to_sparse_csr()"
        )


def _check_width(estimator: Any, rows: Tensor, reset: bool) -> None:
    if reset:
        estimator.n_features_in_ = rows.shape[1]
    elif rows.shape[1] != estimator.n_features_in_:
        raise InputError(
            f"{NAME}: X has {rows.shape[1]} features, but {type(estimator).__name__} is expecting "
            f"{estimator.n_features_in_} features as input"
        )
