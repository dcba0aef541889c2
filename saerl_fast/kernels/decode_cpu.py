"""decode on the CPU: rows of w_dec gathered and added up (csrc/cpu/decode.h), with gradients.

torch knows the sum by name (`saerl_fast::decode_rows`), so that autograd and torch.compile take it whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from saerl_fast.kernels import kmeans_cpu, native

if TYPE_CHECKING:
    from saerl_fast.codes import CsrRows, TopKCodes


def decode(codes: TopKCodes | CsrRows, w_dec: Tensor, b_dec: Tensor) -> Tensor:
    """The contract of `ops.decode`; arguments are checked, none is float64."""
    if len(codes) == 3:  # CsrRows
        indptr = codes.indptr
    else:
        n_rows, k = codes.indices.shape
        indptr = torch.arange(n_rows + 1) * k
    decoded: Tensor = decode_rows(
        indptr.contiguous(),
        codes.indices.reshape(-1).to(torch.int32).contiguous(),
        codes.values.reshape(-1).float().contiguous(),
        w_dec.float().contiguous(),
        b_dec.float().contiguous(),
    )
    return decoded


@torch.library.custom_op("saerl_fast::decode_rows", mutates_args=())
def decode_rows(indptr: Tensor, columns: Tensor, values: Tensor, w_dec: Tensor, b_dec: Tensor) -> Tensor:
    """b_dec + sum of values[e] * w_dec[columns[e]] over the entries of each row: float32 [N, D].

    indptr [N + 1] int64, columns [nnz] int32, values [nnz], w_dec [M, D], b_dec [D] float32; all contiguous.
    """
    return summed(indptr, columns, values, w_dec, b_dec)


@decode_rows.register_fake
def _(indptr: Tensor, columns: Tensor, values: Tensor, w_dec: Tensor, b_dec: Tensor) -> Tensor:
    return w_dec.new_empty(indptr.shape[0] - 1, w_dec.shape[1])


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    indptr, columns, values, w_dec = ctx.saved_tensors
    grad, wanted = grad.contiguous(), ctx.needs_input_grad
    return (
        None,
        None,
        decode_dots(indptr, columns, grad, w_dec) if wanted[2] else None,
        decode_by_latent(indptr, columns, values, grad, w_dec.shape[0]) if wanted[3] else None,
        decode_column_sums(grad) if wanted[4] else None,
    )


decode_rows.register_autograd(_gradients, setup_context=_keep)


@torch.library.custom_op("saerl_fast::decode_dots", mutates_args=())
def decode_dots(indptr: Tensor, columns: Tensor, grad: Tensor, w_dec: Tensor) -> Tensor:
    """The gradient of the values [nnz]. Like the two below, it has no gradient itself: torch raises."""
    return dots(indptr, columns, grad, w_dec)


@decode_dots.register_fake
def _(indptr: Tensor, columns: Tensor, grad: Tensor, w_dec: Tensor) -> Tensor:
    return grad.new_empty(columns.shape[0])


@torch.library.custom_op("saerl_fast::decode_by_latent", mutates_args=())
def decode_by_latent(indptr: Tensor, columns: Tensor, values: Tensor, grad: Tensor, n_latents: int) -> Tensor:
    """The gradient of w_dec [M, D]."""
    return by_latent(indptr, columns, values, grad, n_latents)


@decode_by_latent.register_fake
def _(indptr: Tensor, columns: Tensor, values: Tensor, grad: Tensor, n_latents: int) -> Tensor:
    return grad.new_empty(n_latents, grad.shape[1])


@torch.library.custom_op("saerl_fast::decode_column_sums", mutates_args=())
def decode_column_sums(grad: Tensor) -> Tensor:
    """The gradient of b_dec [D]: one cluster of all rows, added in row order whatever the number of threads."""
    return kmeans_cpu.update(grad, torch.zeros(len(grad), dtype=torch.int32), 1, grad.shape[1])[0].reshape(-1)


@decode_column_sums.register_fake
def _(grad: Tensor) -> Tensor:
    return grad.new_empty(grad.shape[1])


def summed(
    indptr: Tensor, columns: Tensor, values: Tensor, table: Tensor, b: Tensor | None, isa: str = "auto"
) -> Tensor:
    """b + sum of values[e] * table[columns[e]] over the entries of each row."""
    n_rows = indptr.shape[0] - 1
    out = torch.empty(n_rows, table.shape[1], dtype=torch.float32)
    native.module().decode_rows(
        native.address(indptr), native.address(columns), native.address(values), n_rows, len(table),
        native.address(table), native.address(b), table.shape[1], native.address(out), native.threads(), isa,
    )  # fmt: skip
    return out


def dots(indptr: Tensor, columns: Tensor, x: Tensor, table: Tensor, isa: str = "auto") -> Tensor:
    """x[row of e] . table[columns[e]] for each entry e: float32 [nnz]."""
    out = torch.empty(columns.shape[0], dtype=torch.float32)
    native.module().decode_gradient(
        native.address(indptr), native.address(columns), indptr.shape[0] - 1, len(table), native.address(x),
        native.address(table), table.shape[1], native.address(out), native.threads(), isa,
    )  # fmt: skip
    return out


def by_latent(indptr: Tensor, columns: Tensor, values: Tensor, x: Tensor, n_latents: int, isa: str = "auto") -> Tensor:
    """For each latent, the sum of values[e] * x[row of e] over its entries, in row order: float32 [M, D]."""
    row = torch.arange(len(x), dtype=torch.int32).repeat_interleave(indptr.diff())
    order = columns.sort(stable=True).indices
    counts = torch.bincount(columns, minlength=n_latents)
    starts = functional.pad(counts.cumsum(0), (1, 0))
    return summed(starts, row[order].contiguous(), values[order].contiguous(), x, None, isa)
