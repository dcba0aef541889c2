"""decode and project in Triton, with the gradients of decode: each is a sum of gathered rows (gathered_sums.py).

    decode      out[i] = b_dec + sum of v w_dec[j] over the entries (j, v) of row i
    gradients   of v: out'[i] . w_dec[j];   of w_dec[j]: sum of v out'[i] over the entries (i, v) of latent j
    project     out[s] = sum of v matrix[j] over the entries (j, v) of row s

Floor:  D numbers for each entry: 64 latents a token at D 1536 in bfloat16 are 197 kB, 36 ns from an H200's L2 cache, 46
        from its memory: the 75 MB of 24,576 latents fit the cache but in part. The gradient of w_dec writes 151 MB
        besides, 35 us a call.
Trick:  one kernel for all of them. The gradient of w_dec is the same sum over the entries sorted by latent, cut into
        pieces of like size (pieces.py), so that a latent that fires everywhere holds nobody up. Not timed yet:
        docs/measured.md.

torch knows the sum by name (`saerl_fast::decode_rows_triton`), so that autograd and torch.compile take it whole. The
weights are read as they lie, in their own type; nothing is copied but the indices of the gradient of w_dec, which are
sorted by latent.

An index outside of w_dec makes its row, and the gradient of its value, NaN: nothing is read back to be checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saerl_fast.kernels.gathered_sums import dots, run_sums, sums
from saerl_fast.kernels.pieces import cut, grouped

if TYPE_CHECKING:
    from saerl_fast.codes import CsrRows, TopKCodes

LONGEST = 128
"""Entries of one piece of the gradient of w_dec: a latent that fires in more rows is added up in parts."""


def decode(codes: TopKCodes | CsrRows, w_dec: Tensor, b_dec: Tensor) -> Tensor:
    """The contract of `ops.decode`; shapes and types are checked, indices are not, none is float64."""
    if len(codes) == 3:  # CsrRows
        indptr = codes.indptr
    else:
        n_rows, k = codes.indices.shape
        indptr = torch.arange(n_rows + 1, device=codes.indices.device) * k
    columns, values = codes.indices.reshape(-1).contiguous(), codes.values.reshape(-1).contiguous()
    # the name of the operation carries no type: torch has given it its dispatcher's
    decoded: Tensor = decode_rows(indptr.contiguous(), columns, values, _side_by_side(w_dec), b_dec.contiguous())
    return decoded


def project(csr: CsrRows, matrix: Tensor) -> Tensor:
    """The contract of `ops.project`; shapes and types are checked, indices are not, none is float64."""
    indptr = csr.indptr.contiguous()
    return sums(
        (indptr[:-1], indptr[1:]), csr.indices.contiguous(), csr.values.contiguous(), _side_by_side(matrix), None
    )


def _side_by_side(table: Tensor) -> Tensor:
    """A table whose columns lie side by side; its rows may be apart."""
    return table if table.stride(1) == 1 and table.stride(0) >= 0 else table.contiguous()


@torch.library.custom_op("saerl_fast::decode_rows_triton", mutates_args=())
def decode_rows(indptr: Tensor, columns: Tensor, values: Tensor, w_dec: Tensor, b_dec: Tensor) -> Tensor:
    """b_dec + sum of values[e] * w_dec[columns[e]] over the entries of each row: float32 [N, D]."""
    return sums((indptr[:-1], indptr[1:]), columns, values, w_dec, b_dec)


@decode_rows.register_fake
def _(indptr: Tensor, columns: Tensor, values: Tensor, w_dec: Tensor, b_dec: Tensor) -> Tensor:
    return w_dec.new_empty(indptr.shape[0] - 1, w_dec.shape[1], dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.b_dtype = inputs[4].dtype


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    indptr, columns, values, w_dec = ctx.saved_tensors
    grad, wanted = grad.contiguous(), ctx.needs_input_grad
    return (
        None,
        None,
        decode_dots(indptr, columns, grad, w_dec).to(values.dtype) if wanted[2] else None,
        decode_by_latent(indptr, columns, values, grad, w_dec.shape[0]).to(w_dec.dtype) if wanted[3] else None,
        # torch adds the rows up without atomics, in an order that depends on the shape alone
        grad.sum(dim=0).to(ctx.b_dtype) if wanted[4] else None,
    )


decode_rows.register_autograd(_gradients, setup_context=_keep)


@torch.library.custom_op("saerl_fast::decode_dots_triton", mutates_args=())
def decode_dots(indptr: Tensor, columns: Tensor, grad: Tensor, w_dec: Tensor) -> Tensor:
    """The gradient of the values, float32 [nnz]. Like the next one, it has no gradient itself: torch raises."""
    return dots(indptr, columns, grad, w_dec)


@decode_dots.register_fake
def _(indptr: Tensor, columns: Tensor, grad: Tensor, w_dec: Tensor) -> Tensor:
    return grad.new_empty(columns.shape[0], dtype=torch.float32)


@torch.library.custom_op("saerl_fast::decode_by_latent_triton", mutates_args=())
def decode_by_latent(indptr: Tensor, columns: Tensor, values: Tensor, grad: Tensor, n_latents: int) -> Tensor:
    """The gradient of w_dec, float32 [M, D]: for each latent, the sum of values[e] * grad[row of e], in row order."""
    order, starts = grouped(columns, n_latents)
    # the row of entry e: the last one that starts at e or before
    row = torch.searchsorted(indptr, order, right=True) - 1
    return run_sums(cut(starts, len(columns), LONGEST), row, values[order], grad)


@decode_by_latent.register_fake
def _(indptr: Tensor, columns: Tensor, values: Tensor, grad: Tensor, n_latents: int) -> Tensor:
    return grad.new_empty(n_latents, grad.shape[1], dtype=torch.float32)
