"""The two steps of k-means."""

from __future__ import annotations

import torch
from torch import Tensor

from saerl_fast.codes import CsrRows
from saerl_fast.errors import DtypeError, InputError, NonFiniteError, ShapeError
from saerl_fast.ops import check
from saerl_fast.ops.choice import Call, choose
from saerl_fast.ops.reference import Metric
from saerl_fast.ops.table import TABLE

METRICS = ("euclidean", "cosine")


def kmeans_assign(
    rows: Tensor | CsrRows, centroids: Tensor, *, metric: Metric = "euclidean", backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each row.

    rows CsrRows of S rows, or dense [S, M]   centroids [K, M]
    metric "euclidean": distance d = |x - c|^2;  "cosine": d = 1 - x.c / (|x| |c|), where a zero row or
    a zero centroid has cosine 0
    -> labels [S] int32, argmin of d, ties to the lower cluster;  score [S] float32, that smallest d:
    the squared distance, or the cosine distance; never below 0

    Computed in float32 by |x|^2 - 2 x.c + |c|^2, so a squared distance far below |x|^2 carries an
    absolute error of about 1e-6 |x|^2. Raises NonFiniteError where a distance is NaN (NaN or infinity in the
    rows or centroids), ShapeError, DtypeError, InputError, BackendUnavailable.
    """
    check.tensor("kmeans_assign", "centroids", centroids, "[K, M]")
    check.choice("kmeans_assign", "metric", metric, METRICS)
    if centroids.shape[0] == 0:
        raise ShapeError("kmeans_assign: centroids must be [K, M] with K >= 1; got no centroids")
    n_latents = centroids.shape[1]
    _check_shapes("kmeans_assign", rows, n_latents, f"to match centroids {list(centroids.shape)}")
    check.same_device("kmeans_assign", "rows", _device(rows), centroids=centroids)
    call = Call(centroids.device.type, sparse=isinstance(rows, CsrRows))
    body = TABLE["kmeans_assign"][choose(TABLE, "kmeans_assign", call, backend)]
    if not body.marks_bad_rows:
        _check_indices("kmeans_assign", rows, n_latents)
    labels, score = body.run(rows, centroids, metric)
    if bool(score.isnan().any()):
        # a bad index is marked so too; where the indices have been checked, this finds nothing
        _check_indices("kmeans_assign", rows, n_latents)
        bad = score.isnan().nonzero()[:, 0]
        raise NonFiniteError(
            f"kmeans_assign: distances must be numbers; {len(bad)} of {len(score)} rows have a NaN distance "
            f"(first: row {int(bad[0])}). Remove NaN and infinity from the rows and centroids"
        )
    return labels, score


def kmeans_update(
    rows: Tensor | CsrRows,
    labels: Tensor,
    n_clusters: int,
    *,
    n_latents: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Per cluster, the sum of its rows and their number; the caller divides.

    rows CsrRows of S rows, or dense [S, M]   labels [S] int32 or int64 in 0..n_clusters-1
    n_latents: M, needed for CsrRows (which do not carry it)
    -> sums [K, M] float32, counts [K] int64

    Rows are added in row order, on a GPU in runs that are added up in their order: the same input gives the same bits
    on the same backend. Raises ShapeError, DtypeError,
    InputError (a label out of range), BackendUnavailable.
    """
    if isinstance(n_clusters, bool) or not isinstance(n_clusters, int):
        raise DtypeError(f"kmeans_update: n_clusters must be an int; got {type(n_clusters).__name__}")
    if n_clusters < 1:
        raise InputError(f"kmeans_update: n_clusters must be at least 1; got {n_clusters}")
    if n_latents is None:
        if isinstance(rows, CsrRows):
            raise InputError("kmeans_update: CsrRows do not carry their width; pass n_latents=M")
        n_latents = check.tensor("kmeans_update", "rows", rows, "[S, M]").shape[1]
    n_rows = _check_shapes("kmeans_update", rows, n_latents, f"for n_latents={n_latents}")
    _check_indices("kmeans_update", rows, n_latents)
    check.tensor("kmeans_update", "labels", labels, "[S]", (torch.int32, torch.int64))
    check.length("kmeans_update", "labels", labels, n_rows, "to match rows")
    check.in_range("kmeans_update", "labels", labels, n_clusters, "clusters")
    check.same_device("kmeans_update", "rows", _device(rows), labels=labels)
    name = choose(TABLE, "kmeans_update", Call(labels.device.type, sparse=isinstance(rows, CsrRows)), backend)
    sums, counts = TABLE["kmeans_update"][name].run(rows, labels, n_clusters, n_latents)
    return sums, counts


def kmeans_assign_queued(
    rows: Tensor | CsrRows, centroids: Tensor, *, metric: Metric = "euclidean", backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """``kmeans_assign`` as device work that nobody waits for: no number of the arguments is read.

    The caller vouches for the rows (an indptr that never falls, indices among the latents), and looks for NaN in the
    scores when it next waits: that row's label is one of the clusters, and means nothing. The reference, and it alone,
    waits for the sizes of sparse rows all the same.
    """
    check.tensor("kmeans_assign_queued", "centroids", centroids, "[K, M]")
    _check_shapes("kmeans_assign_queued", rows, centroids.shape[1], f"to match centroids {list(centroids.shape)}")
    check.same_device("kmeans_assign_queued", "rows", _device(rows), centroids=centroids)
    name = choose(TABLE, "kmeans_assign", Call(centroids.device.type, sparse=isinstance(rows, CsrRows)), backend)
    labels, score = TABLE["kmeans_assign"][name].run(rows, centroids, metric)
    return labels, score


def kmeans_update_queued(
    rows: Tensor | CsrRows, labels: Tensor, n_clusters: int, n_latents: int, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """``kmeans_update`` in the same manner; the caller vouches for the labels too, as ``kmeans_assign_queued`` does."""
    n_rows = _check_shapes("kmeans_update_queued", rows, n_latents, f"for n_latents={n_latents}")
    check.length("kmeans_update_queued", "labels", labels, n_rows, "to match rows")
    check.same_device("kmeans_update_queued", "rows", _device(rows), labels=labels)
    name = choose(TABLE, "kmeans_update", Call(labels.device.type, sparse=isinstance(rows, CsrRows)), backend)
    sums, counts = TABLE["kmeans_update"][name].run(rows, labels, n_clusters, n_latents)
    return sums, counts


def _check_shapes(op: str, rows: Tensor | CsrRows, n_latents: int, why: str) -> int:
    """Rows of either form by types and shapes; their number."""
    if isinstance(rows, CsrRows):
        check.sparse_shapes(op, "rows", rows)
        return rows.indptr.shape[0] - 1
    check.tensor(op, "rows", rows, "[S, M]")
    check.columns(op, "rows", rows, n_latents, why)
    return rows.shape[0]


def _check_indices(op: str, rows: Tensor | CsrRows, n_latents: int) -> None:
    """Reads the data: on a GPU this waits for the device."""
    if isinstance(rows, CsrRows):
        check.sparse(op, "rows", rows, n_latents)


def _device(rows: Tensor | CsrRows) -> torch.device:
    return rows.indices.device if isinstance(rows, CsrRows) else rows.device
