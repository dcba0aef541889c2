"""The nearest centroids on a GPU behind a screen (nearest_triton.py): what is rounded, what the rounding can change,
and which rows are worth it.

    label = argmin_k bias_k + factor * x.c_k

Floor:  that of nearest_triton.py: at 24,576 latents and 256 clusters 2.4 ms of memory and 2.1 ms of products for
        100,000 rows made dense, against 14 ms of gathering at 3 % kept.
Trick:  the way is chosen by those two floors, from shapes the host knows; what the screen leaves open is a queue on the
        device. Not timed yet: docs/measured.md.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
from torch import Tensor

from saerl_fast.kernels import triton_runtime
from saerl_fast.kernels.nearest_exact import Centres, Found, Queue, exact_nearest
from saerl_fast.kernels.nearest_triton import (
    RUN,
    densify_kernel,
    screen_kernel,
    settle_dense_kernel,
    settle_sparse_kernel,
)

if TYPE_CHECKING:
    from saerl_fast.codes import CsrRows

ROWS = 128
"""Rows of a tile of products."""
FEWEST_CLUSTERS = 32
"""Below, reading the rows costs more than multiplying them."""
FEWEST_LATENTS = 32
CHUNK_NUMBERS = 2**28
"""Numbers of sparse rows made dense at a time (512 MB in bfloat16)."""
TILE_NUMBERS = 2**24
"""Numbers of a chunk's table of nearest clusters per tile of clusters."""


class Screen(NamedTuple):
    """The centroids rounded, and what the rounding can change."""

    rounded: Tensor
    """[K, M], rows a multiple of 16 bytes apart: float32 that TF32 holds, or bfloat16"""
    limits: Tensor
    """[3] float32: max |c^|, max |c - c^|, max |bias|"""
    slack: float
    """Of the accumulation, as a share of |x^| |c^|"""


def pays(rows: Tensor | CsrRows, n_latents: int, n_clusters: int) -> bool:
    """Whether the screen is the faster way, by the floors of both (H200; per row and latent, in ps).

    Gathering: 4 K bytes an entry from the L2 cache at 5.5 TB/s. Dense chunks: 4 bytes of memory a latent at 4.3 TB/s,
    2 K operations at 500 TFLOP/s, and 40 bytes an entry.
    """
    if n_clusters < FEWEST_CLUSTERS or n_latents < FEWEST_LATENTS:
        return False
    if isinstance(rows, Tensor):
        return True
    places = max(1, (len(rows.indptr) - 1) * n_latents)
    density = len(rows.indices) / places
    return density * n_clusters * 4 / 5.5 > 4 / 4.3 + 2 * n_clusters / 500 + density * 40 / 5.5


def screen_of(centres: Centres, dtype: torch.dtype) -> Screen:
    """dtype: float32 (what TF32 holds of it) or bfloat16."""
    table, bias, _ = centres
    n_clusters, n_latents = table.shape
    padded = -(-n_latents // 8) * 8
    rounded = torch.empty(n_clusters, padded, dtype=dtype, device=table.device)[:, :n_latents]
    if dtype == torch.float32:
        rounded.copy_(((table.view(torch.int32) + 0x1000) & -0x2000).view(torch.float32))
    else:
        rounded.copy_(table)
    limits = torch.stack([_longest(rounded), _longest(table - rounded.float()), bias.abs().amax().double()])
    run = min(n_latents, RUN)
    slack = 2.0**-22 * (run + 64) + 2.0**-23 * math.ceil(n_latents / RUN)
    return Screen(rounded, (limits * (1 + 2.0**-18)).float(), slack)


def _longest(rows: Tensor) -> Tensor:
    longest: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).amax()
    return longest


def screened_nearest(rows: Tensor | CsrRows, centres: Centres, found: Found) -> Tensor:
    """Write what `exact_nearest` does; the labels are those of float64 but for the rows queued for it.

    -> their number [1] int32, on the device. Sparse rows: contiguous parts.
    """
    n_rows, device = len(found.labels), found.labels.device
    queue = Queue(
        torch.empty(n_rows, dtype=torch.int64, device=device), torch.zeros(1, dtype=torch.int32, device=device)
    )
    with triton_runtime.on_device_of(found.labels):
        if isinstance(rows, Tensor):
            _dense(rows, centres, found, queue)
        else:
            _sparse(rows, centres, found, queue)
    exact_nearest(rows, centres, found, queue)
    return queue.length


def _dense(rows: Tensor, centres: Centres, found: Found, queue: Queue) -> None:
    screen = screen_of(centres, torch.float32)
    table, bias, factor = centres
    n_clusters, n_latents = table.shape
    for part in _chunks(len(rows), TILE_NUMBERS // tiles_of(n_clusters)):
        here, wanted = rows[part], Found(*(one[part] for one in found))
        nearest = _screened(here, screen, centres)
        settle_dense_kernel[(triton.cdiv(len(here), 32),)](
            here, table, bias, factor, screen.limits, screen.slack, *nearest, *wanted, *queue, part.start,
            len(here), n_latents, len(nearest[0]), *here.stride(), ROWS=32, CHANNELS=32, num_warps=4,
        )  # fmt: skip


def _sparse(rows: CsrRows, centres: Centres, found: Found, queue: Queue) -> None:
    screen = screen_of(centres, torch.bfloat16)
    table, bias, factor = centres
    n_clusters, n_latents = table.shape
    stride = screen.rounded.stride(0)
    chunks = _chunks(len(found.labels), min(CHUNK_NUMBERS // stride, TILE_NUMBERS // tiles_of(n_clusters)))
    longest = max((part.stop - part.start for part in chunks), default=0)
    buffer = torch.empty(longest, stride, dtype=torch.bfloat16, device=table.device)
    n_entries = len(rows.indices)
    for part in chunks:
        n_here = part.stop - part.start
        densify_kernel[(n_here,)](
            *rows, buffer, part.start, n_entries, n_latents, stride, ENTRIES=1024, BLOCK=2048, num_warps=8
        )
        nearest = _screened(buffer[:n_here, :n_latents], screen, centres)
        settle_sparse_kernel[(n_here,)](
            *rows, table, bias, factor, screen.limits, screen.slack, *nearest, *found, *queue, part.start, n_here,
            n_entries, n_latents, len(nearest[0]), ENTRIES=512, num_warps=4,
        )  # fmt: skip


def _screened(rows: Tensor, screen: Screen, centres: Centres) -> tuple[Tensor, Tensor, Tensor]:
    """best, second float32 and label int32 of every tile of clusters: [tiles, rows]."""
    n_clusters, n_latents = screen.rounded.shape
    size, tiles = (tiles_of(n_clusters), len(rows)), triton.cdiv(len(rows), ROWS)
    best, second = (torch.empty(size, dtype=torch.float32, device=rows.device) for _ in range(2))
    label = torch.empty(size, dtype=torch.int32, device=rows.device)
    tf32 = screen.rounded.dtype == torch.float32
    hopper = triton_runtime.device_of(rows)[1]
    screen_kernel[(size[0] * tiles,)](
        rows, screen.rounded, centres.bias, centres.factor, best, second, label, len(rows), n_latents, n_clusters,
        *rows.stride(), screen.rounded.stride(0),
        # the interpreter multiplies the bits of bfloat16 as if they were whole numbers
        TF32=tf32, WIDEN=triton_runtime.interpreted(), ROWS=ROWS, TILE=tile_for(n_clusters),
        CHANNELS=channels_for(tf32, hopper), RUN=RUN, num_warps=8, num_stages=3,
    )  # fmt: skip
    return best, second, label


def channels_for(tf32: bool, hopper: bool) -> int:
    """Channels of a tile: 128 bytes. Before Hopper the operands pass through registers: of float32 half fits."""
    if not tf32:
        return 64
    return 32 if hopper else 16


def tile_for(n_clusters: int) -> int:
    """Clusters of a tile."""
    return min(128, max(16, int(triton.next_power_of_2(n_clusters))))


def tiles_of(n_clusters: int) -> int:
    return -(-n_clusters // tile_for(n_clusters))


def _chunks(n_rows: int, most: int) -> list[slice]:
    """Chunks of like size, and whole tiles where they hold one."""
    most = max(1, most - most % ROWS if most >= ROWS else most)
    chunks = -(-n_rows // most)
    even = -(-n_rows // max(1, chunks))
    step = max(1, min(most, -(-even // ROWS) * ROWS))
    return [slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step)]
