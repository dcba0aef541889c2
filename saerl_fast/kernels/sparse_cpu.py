"""project and project_weighted on the CPU, and what other products of sparse rows need (csrc/cpu/sparse_product.h)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from saerl_fast.codes import CsrRows
from saerl_fast.kernels import native

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


class Survey(NamedTuple):
    """What one look at every entry tells (csrc/cpu/survey.h)."""

    having: Tensor
    """[M] int64: rows whose value there is not zero"""
    ascending: bool
    """In each row the columns rise, none is there twice and none outside; where not, the rest says nothing."""
    finite: bool
    zeros: bool
    """Some stored value is zero."""


def survey(csr: CsrRows, n_latents: int, isa: str = "auto") -> Survey:
    """indptr int64, which never falls and stays within the entries; columns int32, any; values float32."""
    having = torch.empty(n_latents, dtype=torch.int64)
    found = native.module().survey_rows(
        *(native.address(part) for part in in_memory(csr)), csr.indptr.shape[0] - 1, n_latents,
        native.address(having), native.threads(), isa,
    )  # fmt: skip
    return Survey(having, *found)


def unit_sample(
    csr: CsrRows, chosen: Tensor, n_latents: int, weights: Tensor, root: bool, isa: str = "auto"
) -> CsrRows:
    """The rows `chosen` [n] int64, each divided by the length that it has with its columns weighted (row_sample.h).

    csr, whose indices name latents; values float32   weights [M] float32   root: roots of the values instead of them
    """
    rows, weights, chosen = in_memory(csr), weights.contiguous(), chosen.contiguous()
    starts = functional.pad(rows[0].diff()[chosen].cumsum(0), (1, 0))
    columns = torch.empty(int(starts[-1]), dtype=torch.int32)
    values = torch.empty(len(columns), dtype=torch.float32)
    native.module().sample_rows(
        *(native.address(part) for part in rows), len(rows[0]) - 1, n_latents, native.address(chosen), len(chosen),
        native.address(weights), root, native.address(starts), native.address(columns), native.address(values),
        native.threads(), isa,
    )  # fmt: skip
    return CsrRows(starts, columns, values)


def transposed(csr: CsrRows, n_latents: int) -> CsrRows:
    """The columns of `csr`, whose indices name latents, as n_latents rows; their indices ascend."""
    rows = in_memory(csr)
    starts = torch.empty(n_latents + 1, dtype=torch.int64)
    places, values = torch.empty_like(rows[1]), torch.empty_like(rows[2])
    native.module().transpose_rows(
        *(native.address(part) for part in rows), len(rows[0]) - 1, n_latents,
        native.address(starts), native.address(places), native.address(values),
    )  # fmt: skip
    return CsrRows(starts, places, values)


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
