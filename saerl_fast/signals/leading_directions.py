"""The leading right singular vectors of sparse rows, by randomized subspace iteration.

Halko, Martinsson and Tropp (2011), algorithms 4.4 and 5.3, as in scikit-learn's `randomized_svd`; but the products with
the sparse rows, which are nearly all of the work there, are `ops.project`. QR and eigenvectors are LAPACK's.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from saerl_fast.ops import CsrRows, project

OVERSAMPLING = 64
"""Directions looked for beyond those wanted. `project` takes 64 columns at a time, so 128 + 64 fill three panels."""
NO_DIRECTION = 1e-4
"""A singular value below this share of the largest is rounding: products are float32."""


def leading_directions(
    rows: sparse.csr_array, wanted: int, *, n_iter: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Up to `wanted` singular values [r] float64, descending, and orthonormal directions [r, M] float32.

    rows: CSR [S, M] float32, not all zero. Fewer come back where the rows have fewer. Each direction's largest
    entry is positive. The bits do not depend on the number of threads.
    """
    from scipy import linalg
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    forth, back = as_tensors(rows), as_tensors(sparse.csr_array(rows.T))
    searched = min(wanted + OVERSAMPLING, *rows.shape)
    span = rng.standard_normal((rows.shape[1], searched), dtype=np.float32)
    # how BLAS cuts its work among threads would show in the last bits
    with threadpool_limits(1, user_api="blas"):
        for _ in range(n_iter + 1):
            span = linalg.qr(_times(back, _times(forth, span)), mode="economic", check_finite=False)[0]
        image = _times(forth, span).astype(np.float64)
        squares, rotation = linalg.eigh(image.T @ image)
        # eigh sorts upwards
        values = np.sqrt(np.maximum(squares[::-1], 0))
        kept = values[:wanted] > NO_DIRECTION * values[0]
        directions = (span @ rotation[:, ::-1][:, :wanted][:, kept]).T
    return values[:wanted][kept], _signed(directions).astype(np.float32)


def _signed(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """A direction and its opposite are one: make the largest entry of each positive."""
    largest = np.abs(directions).argmax(axis=1)
    signs = np.sign(directions[np.arange(len(directions)), largest])
    found: NDArray[np.float64] = directions * signs[:, None]
    return found


def _times(rows: CsrRows, columns: NDArray[np.float32]) -> NDArray[np.float32]:
    product: NDArray[np.float32] = project(rows, torch.from_numpy(columns)).numpy()
    return product


def as_tensors(rows: sparse.csr_array) -> CsrRows:
    """The rows as the operations take them; shares the values."""
    return CsrRows(
        torch.from_numpy(rows.indptr.astype(np.int64)),
        torch.from_numpy(rows.indices.astype(np.int32)),
        torch.from_numpy(rows.data),
    )
