"""The leading right singular vectors of sparse rows, by a block Lanczos iteration.

Golub, Luk and Overton (1981), started from a random sketch of the rows as Halko, Martinsson and Tropp (2011) do:

    Q = orth(A A^T W), then orth(A A^T q) for the newest block q of Q, at right angles to all of Q, again and again
    A^T Q = V S U^T:  the columns of V are the directions

W [S, b] is random, A the rows with their columns weighted. Everything that a block has found is kept, so that one pass
over the rows brings more than a pass of subspace iteration does, which keeps the newest block only. The products with
the sparse rows, nearly all of the work, are `ops.project`; eigenvectors are LAPACK's.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from saerl_fast.ops import CsrRows, check
from saerl_fast.ops.choice import Call, choose
from saerl_fast.ops.table import TABLE
from saerl_fast.signals.counted_rows import as_tensors
from saerl_fast.signals.row_sample import transposed

BLOCK, BLOCK_STEP = 64, 16
"""Directions that are looked for at a time: a multiple of the second, and no more columns than `project` takes at a
time."""
SPARE = 16
"""Directions that are looked for beyond those wanted: what is at the end of them is least exact."""
NO_DIRECTION = 1e-4
"""A singular value below this share of the largest is rounding: products are float32."""
ROUNDING = 1e-5
"""What is shorter than this share of a product, once all that was known is taken off, is rounding."""

Columns = NDArray[np.float32]


@dataclass(frozen=True)
class Weighted:
    """A = rows * weights [S, M]. Weights go to the few columns that A is multiplied with, not to its many entries."""

    forth: CsrRows
    back: CsrRows
    weights: Columns
    """[M, 1]"""

    def times(self, columns: Columns) -> Columns:
        """A [S, M] times columns [M, b]."""
        return _times(self.forth, columns * self.weights)

    def transposed_times(self, columns: Columns) -> Columns:
        """A^T [M, S] times columns [S, b]."""
        return _times(self.back, columns) * self.weights


def leading_directions(
    rows: sparse.csr_array,
    wanted: int,
    *,
    n_iter: int,
    rng: np.random.Generator,
    weights: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Up to `wanted` singular values [r] float64, descending, and orthonormal directions [r, M] float32.

    rows: CSR [S, M] float32, not all zero. weights [M] > 0: each column is multiplied with its own first. Fewer come
    back where the rows have fewer. n_iter: blocks beyond those that hold the directions wanted. Each direction's
    largest entry is positive. The bits do not depend on the number of threads.
    """
    n_rows, width = rows.shape
    scale = np.ones(width) if weights is None else weights
    check.sparse("leading_directions", "rows", as_tensors(rows), width)
    a = Weighted(as_tensors(rows), transposed(rows), scale.astype(np.float32)[:, None])
    blocks = -(-wanted // BLOCK) + n_iter
    block_width = min(BLOCK, -(-(wanted + SPARE) // (blocks * BLOCK_STEP)) * BLOCK_STEP, n_rows, width)
    image = a.transposed_times(rng.standard_normal((n_rows, block_width), dtype=np.float32))
    found, images = np.zeros((n_rows, 0), dtype=np.float32), []
    # how BLAS cuts its work among threads would show in the last bits
    with _blas().limit(limits=1, user_api="blas"):
        for _ in range(blocks):
            block = _orthonormal(a.times(image), beside=found)
            image = a.transposed_times(block)
            found = np.hstack([found, block])
            images.append(image)
        joined = np.hstack(images)
        wide = joined.astype(np.float64)
        squares, rotation = np.linalg.eigh(wide.T @ wide)
        # eigh sorts upwards
        values = np.sqrt(np.maximum(squares[::-1], 0))[:wanted]
        values = values[values > NO_DIRECTION * values[0]]
        directions = (rotation[:, ::-1][:, : len(values)] / values).astype(np.float32).T @ joined.T
    return values, _signed(directions)


@functools.cache
def _blas() -> Any:
    """What sets BLAS to one thread. Looking for the libraries takes 2 ms, so once, when numpy has loaded its own."""
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController()


def _orthonormal(block: Columns, *, beside: Columns) -> Columns:
    """What the columns of `block` span at right angles to the orthonormal columns of `beside`."""
    rounding = ROUNDING * np.linalg.norm(block)
    # what the first pass leaves of `beside` is rounding, but large where little is left of `block`
    for _ in range(2):
        block = block - beside @ (beside.T @ block)
    wide = block.astype(np.float64)
    squares, rotation = np.linalg.eigh(wide.T @ wide)
    kept = squares > rounding**2
    spanned: Columns = (wide @ (rotation[:, kept] / np.sqrt(squares[kept]))).astype(np.float32)
    return spanned


def _signed(directions: Columns) -> Columns:
    """A direction and its opposite are one: make the largest entry of each positive."""
    largest = np.abs(directions).argmax(axis=1)
    signs = np.sign(directions[np.arange(len(directions)), largest])
    found: Columns = directions * signs[:, None]
    return found


def _times(rows: CsrRows, columns: Columns) -> Columns:
    """`ops.project` of rows that have been checked: once, and not for each product."""
    body = TABLE["project"][choose(TABLE, "project", Call("cpu"), None)]
    product: Columns = body.run(rows, torch.from_numpy(columns)).numpy()
    return product
