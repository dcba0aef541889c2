"""segment_pool on an NVIDIA GPU: each segment is given all the room it could need.

    out[s][j] = pool over the tokens t of segment s of value(t, j)       sum, mean, max, last or count

Floor:  each entry once: 512 bytes a token of 64 latents, 0.12 ns of an H200's memory; a token's forward is some
        microseconds. In shared memory a row of 24,576 latents takes 98 kB, so that two segments share a multiprocessor.
Trick:  csrc/cuda/segment_pool.cu, and here the sizes, which are bounds that the host knows. Not timed yet:
        docs/measured.md.

Segment s of n tokens with k latents each keeps at most min(M, n k) of them, and of CSR tokens no more than their
entries: the host knows the sum without asking the device, and waits for nothing. Of tokens with room between them it
knows all their places, and that S segments keep at most S M: the lower of the two is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from saerl_fast.codes import SpacedRows
from saerl_fast.kernels import native
from saerl_fast.kernels.scores_cuda import queue_of

if TYPE_CHECKING:
    from saerl_fast.codes import CsrRows, TopKCodes

    Codes = TopKCodes | CsrRows | SpacedRows

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


def segment_pool(codes: Codes, offsets: Tensor, n_latents: int, mode: str) -> SpacedRows:
    """The contract of `ops.segment_pool_spaced`; offsets are checked and on the CPU, the codes are only known by shape.

    No value is float64.
    """
    device = codes.indices.device
    begins, stops, bounds = _tokens(codes)
    kept = codes.indices.shape[1] if bounds is None else None
    plan = _plan(offsets, mode, n_latents, kept, len(codes.indices))
    segments = _to_device(torch.cat([plan.firsts, plan.lasts, plan.starts]), device)
    firsts, lasts, starts = torch.split(segments, [len(plan.firsts), len(plan.lasts), len(plan.starts)])
    if bounds is not None and plan.by_entries:
        starts = bounds[starts]
    counts = torch.empty(len(firsts), dtype=torch.int64, device=device)
    indices = torch.empty(plan.places, dtype=torch.int32, device=device)
    values = torch.empty(plan.places, dtype=torch.float32, device=device)
    columns = _columns(codes.indices, n_latents)
    given = codes.values.float().contiguous()
    native.module().segment_pool_cuda(
        native.address(firsts), native.address(lasts), len(firsts), native.address(begins),
        native.address(stops), _n_tokens(codes), kept or 0, native.address(columns), native.address(given),
        given.numel(), n_latents, POOLINGS[mode], native.address(starts), plan.places, shared_bytes(device),
        native.address(counts), native.address(indices), native.address(values), *queue_of(indices),
    )  # fmt: skip
    if isinstance(codes, SpacedRows):
        marks = codes.worst_between(firsts, lasts)
        counts = torch.where(marks < 0, marks, counts)
    return SpacedRows(starts, counts, indices, values)


class Plan(NamedTuple):
    """What the host knows of the segments: the tokens firsts[s] : lasts[s] of each, and the room of all.

    Segment s has the places from starts[s] to starts[s + 1]; where ``by_entries``, from the first entry of token
    starts[s] to that of token starts[s + 1].
    """

    firsts: Tensor
    lasts: Tensor
    starts: Tensor
    by_entries: bool
    places: int


def _plan(offsets: Tensor, mode: str, n_latents: int, kept: int | None, entries: int) -> Plan:
    """kept: entries of each token, or None where tokens have any number, of ``entries`` in all. Reads offsets alone."""
    firsts, lasts = offsets[:-1], offsets[1:]
    if mode == "last":
        # the last token alone, or nothing where there is none
        firsts = torch.where(firsts < lasts, lasts - 1, lasts)
    room = torch.full_like(firsts, n_latents) if kept is None else (lasts - firsts) * kept
    starts = functional.pad(room.clamp(max=n_latents).cumsum(0), (1, 0))
    places = int(starts[-1])
    if kept is not None or places < entries:
        return Plan(firsts, lasts, starts, False, places)
    return Plan(firsts, lasts, offsets, True, entries)


def _tokens(codes: Codes) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Where the entries of each token begin and stop, and bounds [N + 1] of their places; None of k to a token."""
    if isinstance(codes, SpacedRows):
        starts = codes.starts.contiguous()
        return starts[:-1], starts[:-1] + codes.counts.clamp(min=0), starts
    if len(codes) == 3:  # CsrRows
        indptr = codes.indptr.contiguous()
        return indptr[:-1], indptr[1:], indptr
    return None, None, None


def _n_tokens(codes: Codes) -> int:
    if isinstance(codes, SpacedRows):
        return len(codes.counts)
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
