"""segment_pool on an NVIDIA GPU (csrc/cuda/segment_pool.cu): each segment is given all the room it could need.

Segment s of n tokens with k latents each keeps at most min(M, n k) of them, and of CSR tokens no more than their
entries: the host knows the sum without asking the device, and waits for nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from saerl_fast.codes import SpacedRows
from saerl_fast.kernels import native
from saerl_fast.kernels.scores_cuda import queue_of

if TYPE_CHECKING:
    from saerl_fast.codes import CsrRows, TopKCodes

POOLINGS = {"sum": 0, "mean": 1, "max": 2, "count": 3, "last": 0}
"""As csrc/cuda/launchers.h numbers them; "last" is the sum of one token."""
SMALL_SHARED = 48 * 1024
"""What every device gives a block, where torch does not say."""


def shared_bytes(device: torch.device) -> int:
    """Shared memory that one block may take; a kilobyte is kept for what a kernel holds beside its row."""
    if device.type != "cuda":
        return SMALL_SHARED
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", SMALL_SHARED)) - 1024


def segment_pool(codes: TopKCodes | CsrRows, offsets: Tensor, n_latents: int, mode: str) -> SpacedRows:
    """The contract of `ops.segment_pool_spaced`; offsets are checked and on the CPU, the codes are only known by shape.

    No value is float64.
    """
    device = codes.indices.device
    firsts, lasts = offsets[:-1], offsets[1:]
    if mode == "last":
        # the last token alone, or nothing where there is none
        firsts = torch.where(firsts < lasts, lasts - 1, lasts)
    if len(codes) == 3:  # CsrRows
        indptr = codes.indptr.contiguous()
        begins, stops, kept, places = indptr[:-1], indptr[1:], 0, len(codes.indices)
        segments = _to_device(torch.cat([firsts, lasts, offsets]), device)
        starts = indptr[segments[2 * len(firsts) :]]
    else:
        begins, stops, kept = None, None, codes.indices.shape[1]
        room = ((lasts - firsts) * kept).clamp(max=n_latents)
        starts = functional.pad(room.cumsum(0), (1, 0))
        places = int(starts[-1])
        segments = _to_device(torch.cat([firsts, lasts, starts]), device)
        starts = segments[2 * len(firsts) :]
    counts = torch.empty(len(firsts), dtype=torch.int64, device=device)
    indices = torch.empty(places, dtype=torch.int32, device=device)
    values = torch.empty(places, dtype=torch.float32, device=device)
    columns = _columns(codes.indices, n_latents)
    given = codes.values.float().contiguous()
    native.module().segment_pool_cuda(
        native.address(segments), native.address(segments[len(firsts) :]), len(firsts), native.address(begins),
        native.address(stops), _n_tokens(codes), kept, native.address(columns), native.address(given), given.numel(),
        n_latents, POOLINGS[mode], native.address(starts), places, shared_bytes(device), native.address(counts),
        native.address(indices), native.address(values), *queue_of(indices),
    )  # fmt: skip
    return SpacedRows(starts, counts, indices, values)


def _n_tokens(codes: TopKCodes | CsrRows) -> int:
    return int(codes.indptr.shape[0] - 1 if len(codes) == 3 else codes.indices.shape[0])


def _columns(indices: Tensor, n_latents: int) -> Tensor:
    """int32; an int64 that names no latent becomes one that names none."""
    if indices.dtype == torch.int64:
        indices = torch.where((indices < 0) | (indices >= n_latents), -1, indices).to(torch.int32)
    return indices.contiguous()


def _to_device(host: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        # from pinned memory the copy is queued behind the work that is under way, and nobody waits
        host = host.pin_memory()
    return host.to(device, non_blocking=True)
