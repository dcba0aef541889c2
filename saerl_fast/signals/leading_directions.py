"""The leading right singular vectors of sparse rows, by a block Lanczos iteration.

Golub, Luk and Overton (1981), started from a random sketch of the rows as Halko, Martinsson and Tropp (2011) do:

    Q = orth(A A^T W), then orth(A A^T q) for the newest block q of Q, at right angles to all of Q, again and again
    A^T Q = V S U^T:  the columns of V are the directions

W [S, b] is random. Everything that a block has found is kept, so that one pass over the rows brings more than a pass of
subspace iteration does, which keeps the newest block only. The products with the sparse rows, nearly all of the work,
are `ops.project`; eigenvectors are LAPACK's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from saerl_fast.ops import CsrRows, project

BLOCK = 64
"""Directions that are looked for at a time: as many columns as `project` takes at a time."""
NO_DIRECTION = 1e-4
"""A singular value below this share of the largest is rounding: products are float32."""
ROUNDING = 1e-5
"""What is shorter than this share of a product, once all that was known is taken off, is rounding."""

Columns = NDArray[np.float32]


def leading_directions(
    rows: sparse.csr_array, wanted: int, *, n_iter: int, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Up to `wanted` singular values [r] float64, descending, and orthonormal directions [r, M] float32.

    rows: CSR [S, M] float32, not all zero. Fewer come back where the rows have fewer. n_iter: blocks beyond those that
    hold the directions wanted. Each direction's largest entry is positive. The bits do not depend on the number of
    threads.
    """
    from scipy import linalg
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    forth, back = as_tensors(rows), as_tensors(sparse.csr_array(rows.T))
    image = _times(back, rng.standard_normal((rows.shape[0], min(BLOCK, *rows.shape)), dtype=np.float32))
    found, images = np.zeros((rows.shape[0], 0), dtype=np.float32), []
    # how BLAS cuts its work among threads would show in the last bits
    with threadpool_limits(1, user_api="blas"):
        for _ in range(-(-wanted // BLOCK) + n_iter):
            block = _orthonormal(_times(forth, image), beside=found)
            image = _times(back, block)
            found = np.hstack([found, block])
            images.append(image)
        wide = np.hstack(images).astype(np.float64)
        squares, rotation = linalg.eigh(wide.T @ wide)
        # eigh sorts upwards
        values = np.sqrt(np.maximum(squares[::-1], 0))[:wanted]
        values = values[values > NO_DIRECTION * values[0]]
        directions = (wide @ rotation[:, ::-1][:, : len(values)] / values).T
    return values, _signed(directions).astype(np.float32)


def _orthonormal(block: Columns, *, beside: Columns) -> Columns:
    """What the columns of `block` span at right angles to the orthonormal columns of `beside`."""
    from scipy import linalg

    rounding = ROUNDING * np.linalg.norm(block)
    # what the first pass leaves of `beside` is rounding, but large where little is left of `block`
    for _ in range(2):
        block = block - beside @ (beside.T @ block)
    wide = block.astype(np.float64)
    squares, rotation = linalg.eigh(wide.T @ wide)
    kept = squares > rounding**2
    spanned: Columns = (wide @ (rotation[:, kept] / np.sqrt(squares[kept]))).astype(np.float32)
    return spanned


def _signed(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """A direction and its opposite are one: make the largest entry of each positive."""
    largest = np.abs(directions).argmax(axis=1)
    signs = np.sign(directions[np.arange(len(directions)), largest])
    found: NDArray[np.float64] = directions * signs[:, None]
    return found


def _times(rows: CsrRows, columns: Columns) -> Columns:
    product: Columns = project(rows, torch.from_numpy(columns)).numpy()
    return product


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
