"""project and project_weighted on the CPU, and what other products of sparse rows need (csrc/cpu/sparse_product.h)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from saerl_fast.kernels import native

if TYPE_CHECKING:
    from saerl_fast.codes import CsrRows

PANEL = 64
PANEL_STEP = 16


def project(csr: CsrRows, matrix: Tensor, isa: str = "auto") -> Tensor:
    """The contract of `ops.project`; arguments are checked, none is float64."""
    rows = in_memory(csr)
    panels, width = packed(matrix.float())
    n_rows, n_columns = rows[0].shape[0] - 1, matrix.shape[1]
    out = torch.empty(n_rows, n_columns, dtype=torch.float32)
    native.module().multiply_sparse(
        *(native.address(part) for part in rows), n_rows, matrix.shape[0], native.address(panels), width,
        n_columns, native.address(out), native.threads(), isa,
    )  # fmt: skip
    return out


def project_weighted(csr: CsrRows, matrix: Tensor, weights: Tensor, value_transform: str, isa: str = "auto") -> Tensor:
    """The contract of `ops.project_weighted`; arguments are checked, none is float64."""
    if value_transform == "log1p":  # not worth vector code of its own
        csr = csr._replace(values=csr.values.float().abs().log1p().copysign(csr.values))
    rows, weights = in_memory(csr), weights.float().contiguous()
    panels, width = packed(matrix.float() * weights[:, None])
    n_rows, n_columns = rows[0].shape[0] - 1, matrix.shape[1]
    out = torch.empty(n_rows, n_columns, dtype=torch.float32)
    native.module().multiply_to_unit(
        *(native.address(part) for part in rows), n_rows, matrix.shape[0], native.address(panels), width,
        n_columns, native.address(weights), value_transform == "sqrt", native.address(out), native.threads(), isa,
    )  # fmt: skip
    return out


def in_memory(csr: CsrRows) -> tuple[Tensor, Tensor, Tensor]:
    """indptr int64, columns int32 and values float32, each contiguous."""
    return (
        csr.indptr.contiguous(),
        csr.indices.to(torch.int32).contiguous(),
        csr.values.float().contiguous(),
    )


def packed(table: Tensor) -> tuple[Tensor, int]:
    """A table [M, W] as panels [ceil(W / width), M, width], filled up with zeros; and their width."""
    n_latents, n_columns = table.shape
    width = min(PANEL, max(1, -(-n_columns // PANEL_STEP)) * PANEL_STEP)
    n_panels = -(-n_columns // width)
    filled = functional.pad(table, (0, n_panels * width - n_columns))
    return filled.reshape(n_latents, n_panels, width).transpose(0, 1).contiguous(), width
