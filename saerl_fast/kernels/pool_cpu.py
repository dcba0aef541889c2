"""segment_pool on the CPU: one dense row of latents per thread, added to entry by entry (csrc/cpu/segment_pool.h)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from saerl_fast.errors import InputError
from saerl_fast.kernels import native

if TYPE_CHECKING:
    from saerl_fast.codes import CsrRows, TopKCodes

MAX_LATENTS = 2**24
"""Upper bound on M, so that the row of one thread takes 64 MB at most (128 MB for "max")."""


def checks_indices(indices: Tensor, mode: str) -> bool:
    """Whether `segment_pool` itself refuses every index outside 0..n_latents-1: it checks what it reads, as int32."""
    return mode != "last" and indices.dtype == torch.int32


def segment_pool(
    codes: TopKCodes | CsrRows, offsets: Tensor, n_latents: int, mode: str, isa: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """The contract of `ops.segment_pool`; arguments are checked (indices: `checks_indices`), M <= MAX_LATENTS.

    No value is float64. Raises InputError for an index outside 0..n_latents-1.
    """
    tokens = offsets.diff()
    starts, stops = offsets[:-1], offsets[1:]
    if mode == "last":
        # the last token alone, or nothing where there is none
        starts = torch.where(tokens > 0, stops - 1, stops)
        mode = "sum"
    if len(codes) == 3:  # CsrRows
        starts, stops = codes.indptr[starts], codes.indptr[stops]
    else:
        starts, stops = starts * codes.indices.shape[1], stops * codes.indices.shape[1]
    starts, stops = starts.contiguous(), stops.contiguous()
    columns = codes.indices.to(torch.int32).contiguous()
    values = codes.values.float().contiguous()
    indptr = torch.empty(len(tokens) + 1, dtype=torch.int64)
    try:
        indices, pooled = native.module().segment_pool(
            native.address(starts), native.address(stops), native.address(tokens), len(tokens),
            native.address(columns), native.address(values), values.numel(), n_latents,
            mode, native.address(indptr), native.threads(), isa,
        )  # fmt: skip
    except IndexError as error:
        low, high = (int(bound) for bound in columns.aminmax())
        raise InputError(
            f"segment_pool: codes.indices must lie in 0..{n_latents - 1} (latents); got values from {low} to {high}"
        ) from error
    return indptr, _tensor(indices, torch.int32), _tensor(pooled, torch.float32)


def _tensor(array: Any, dtype: torch.dtype) -> Tensor:
    """The numbers of a compiled array, where they are; the tensor keeps them alive."""
    # torch takes no empty buffer
    return torch.frombuffer(array, dtype=dtype) if len(array) else torch.empty(0, dtype=dtype)
