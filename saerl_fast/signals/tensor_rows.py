"""Rows for k-means that lie in torch tensors, on any device: dense, or in torch's CSR layout.

They stay where they are. One number is read to check them; what `fit` decides by (labels, distances, sums of clusters)
is fetched once per pass, and `partial_fit` fetches what it has become at its end (kmeans_stream.py).
"""

from __future__ import annotations

from typing import Any, NoReturn, TypeGuard

import torch
from torch import Tensor

from saerl_fast.errors import DtypeError, InputError, NonFiniteError, ShapeError
from saerl_fast.ops import CsrRows
from saerl_fast.ops import check as ops_check
from saerl_fast.ops.reference import Metric, transformed
from saerl_fast.signals.cluster_rows import ClusterRows
from saerl_fast.signals.scaling import transform_values

NAME = "StreamingKMeans"
NOT_FINITE = f"{NAME}: rows must be finite; they hold NaN or infinity. Remove such rows"


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
    check_width(estimator, width, None if reset else estimator.n_features_in_)
    estimator.n_features_in_ = width
    given = rows.detach()
    if given.layout == torch.strided:
        dense = given.float()
        if not bool(dense.isfinite().all()):
            raise NonFiniteError(NOT_FINITE)
        return prepared(dense, width, metric, value_transform)
    csr = CsrRows(given.crow_indices().long(), given.col_indices(), given.values().float())
    if not bool(_sound(csr, width)):
        _refuse(csr, width)
    return prepared(csr._replace(indices=csr.indices.int()), width, metric, value_transform)


def prepared(rows: Tensor | CsrRows, width: int, metric: Metric, value_transform: str) -> ClusterRows:
    """Transformed and, under the cosine metric, normalised rows, float32, where the rows are. Waits for no device.

    The caller vouches for the rows: finite, and sparse ones such as `tensor_rows` lets through.
    """
    if isinstance(rows, Tensor):
        values = _transformed(rows, value_transform)
        squares = values.double().square().sum(dim=1)
        if metric == "euclidean":
            return ClusterRows(values, (len(rows), width), squares, metric)
        scaled = values * _unit(squares)[:, None]
        return ClusterRows(scaled, (len(rows), width), (squares > 0).double(), metric)
    values, shape = _transformed(rows.values.float(), value_transform), (len(rows.indptr) - 1, width)
    # unsafe: its own checks would read the offsets
    squares = torch.segment_reduce(values.double().square(), "sum", offsets=rows.indptr, unsafe=True)
    if metric == "euclidean":
        return ClusterRows(rows._replace(values=values), shape, squares, metric)
    scaled = values * _unit(squares).repeat_interleave(rows.indptr.diff(), output_size=len(values))
    return ClusterRows(rows._replace(values=scaled), shape, (squares > 0).double(), metric)


def _unit(squares: Tensor) -> Tensor:
    """What brings rows to length 1, float32; a zero row stays zero."""
    return torch.where(squares > 0, squares.rsqrt(), 0).float()


def _transformed(values: Tensor, value_transform: str) -> Tensor:
    """On a CPU by numpy, whose roots and logarithms are not torch's to the last bit: the rows of scipy are the same."""
    if values.device.type == "cpu" and value_transform != "none":
        return torch.from_numpy(transform_values(values.numpy(), value_transform))
    return transformed(values, value_transform)


def _sound(csr: CsrRows, width: int) -> Tensor:
    """Whether `_refuse` would let these rows pass: one bool, on their device."""
    indptr, indices, values = csr
    n_entries = len(indices)
    first = torch.zeros(n_entries + 1, dtype=torch.bool, device=indices.device)
    # from the last entry of a row to the first of the next it may fall
    first[indptr.clamp(0, n_entries)] = True
    rises = (indices[1:] > indices[:-1]) | first[1:n_entries]
    checks = [
        indptr[0] == 0,
        indptr[-1] == n_entries,
        (indptr[1:] >= indptr[:-1]).all(),
        ((indices >= 0) & (indices < width)).all(),
        rises.all(),
        values.isfinite().all(),
    ]
    return torch.stack(checks).all()


def _refuse(csr: CsrRows, width: int) -> NoReturn:
    """Say what is wrong with rows that are not sound."""
    ops_check.sparse(NAME, "rows", csr, width)
    if not bool(csr.values.isfinite().all()):
        raise NonFiniteError(NOT_FINITE)
    raise InputError(
        f"{NAME}: the indices of a row must be ascending and distinct. Use .to_sparse_coo().coalesce().to_sparse_csr()"
    )


def check_width(estimator: Any, width: int, known: int | None) -> None:
    """Raise InputError where the rows have another width than the one learnt; None is not learnt yet."""
    if known is not None and width != known:
        raise InputError(
            f"{NAME}: X has {width} features, but {type(estimator).__name__} is expecting {known} features as input"
        )
