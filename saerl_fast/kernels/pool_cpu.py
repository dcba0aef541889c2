"""segment_pool on the CPU: one dense row of latents per thread, added to entry by entry (csrc/cpu/segment_pool.h)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from saerl_fast.kernels import native

if TYPE_CHECKING:
    from saerl_fast.codes import CsrRows, TopKCodes

MAX_LATENTS = 2**24
"""Upper bound on M, so that the row of one thread takes 64 MB at most (128 MB for "max" and "count")."""


def segment_pool(
    codes: TopKCodes | CsrRows, offsets: Tensor, n_latents: int, mode: str, isa: str = "auto"
) -> tuple[Tensor, Tensor, Tensor]:
    """The contract of `ops.segment_pool`; arguments are checked, none is float64, M <= MAX_LATENTS."""
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
    pool = native.module().SegmentPool(
        native.address(starts), native.address(stops), native.address(tokens), len(tokens),
        native.address(columns), native.address(values), values.numel(), n_latents,
        mode, native.threads(), isa,
    )  # fmt: skip
    indptr = torch.empty(len(tokens) + 1, dtype=torch.int64)
    indices = torch.empty(pool.entries(), dtype=torch.int32)
    pooled = torch.empty(pool.entries(), dtype=torch.float32)
    pool.write(native.address(indptr), native.address(indices), native.address(pooled), native.threads())
    return indptr, indices, pooled
