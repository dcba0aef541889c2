"""topk_encode and threshold_encode in Triton: the matrix product with its epilogue, chunk by chunk, then a select.

    h = scale * ((x' - b_dec) w_enc^T + b_enc);   topk_j h, or every h > theta     x': x, or x behind an input norm

Floor:  the product: 96 ns a token at D 1536 and 24,576 latents on an H200, while which the scores of the tile before
        are written (98 kB, 23 ns). The select reads the maxima of 768 groups and 64 groups of 32: 11 kB, 2.6 ns.
Trick:  in scores_triton.py and select_triton.py; here they get their shapes, and memory: the scores of one chunk of
        tokens (0.5 GB), reused. Nothing waits for the device but `threshold_encode`, once for the number of entries.

Not timed yet: docs/measured.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from saerl_fast.kernels import csr_capacity, native, triton_runtime
from saerl_fast.kernels.folded_bias import folded_bias, row_sums
from saerl_fast.kernels.latent_groups import compiled_select, group_size_for
from saerl_fast.kernels.row_norms_triton import row_norms
from saerl_fast.kernels.scores_cuda import HALVES, padded, queue_of, rows_per_chunk
from saerl_fast.kernels.scores_triton import AFTER, BEFORE, scores_kernel
from saerl_fast.kernels.select_triton import row_counts_kernel, threshold_kernel, topk_kernel
from saerl_fast.kernels.threshold_cuda import least_kept

COUNT_GROUP = 32


@dataclass(frozen=True, slots=True)
class Tiles:
    """How the product is cut."""

    rows: int
    latents: int
    channels: int
    warps: int
    stages: int


def tiles_for(half: bool, hopper: bool) -> Tiles:
    """The largest tiles whose accumulators and epilogue fit the registers, as compiled ahead of time.

    16-bit on Hopper: two warpgroups with 128 x 256 accumulators, three stages, 147 kB. Before Hopper the operands pass
    through registers too, so half of that (98 kB, which consumer GPUs have). float32 is multiplied outside of the
    tensor cores, where a small tile does as well.
    """
    if not half:
        return Tiles(64, 128, 16, 8, 2)
    return Tiles(128, 256, 64, 8, 3) if hopper else Tiles(128, 128, 64, 8, 3)


def _fits_copy_engine(matrix: Tensor) -> bool:
    """What a tensor descriptor wants: 16-byte addresses, columns side by side."""
    item = matrix.element_size()
    return (
        0 not in matrix.shape
        and matrix.stride(1) == 1
        and matrix.stride(0) >= matrix.shape[1]
        and matrix.data_ptr() % 16 == 0
        and matrix.stride(0) * item % 16 == 0
        and max(matrix.shape) < 2**31
    )


@dataclass(frozen=True, slots=True)
class UpperBounds:
    """What is added to each score: row_error[i] latent_size[j] + row_size[i] latent_error[j]; float32, contiguous."""

    row_error: Tensor
    row_size: Tensor
    latent_size: Tensor
    latent_error: Tensor


class ScoreChunks:
    """An encoder and its rows, ready to be multiplied; each chunk comes with the maxima or counts of its groups."""

    def __init__(
        self,
        x: Tensor,
        w_enc: Tensor,
        b_enc: Tensor,
        b_dec: Tensor | None,
        scale: Tensor | None,
        row_index: Tensor | None,
        group: int,
        theta: Tensor | None = None,
        bounds: UpperBounds | None = None,
        norm: str = "none",
    ) -> None:
        self._x, self._w, self._row_index = x, w_enc, None if row_index is None else row_index.contiguous()
        self._half = x.dtype == w_enc.dtype and x.dtype in HALVES
        # the interpreter multiplies the bits of bfloat16 as if they were whole numbers
        self._widen = not self._half or (x.dtype == torch.bfloat16 and triton_runtime.interpreted())
        self._theta, self._bounds, self.group = theta, bounds, group
        self.n_rows = x.shape[0] if row_index is None else row_index.shape[0]
        self.n_latents = w_enc.shape[0]
        self.n_groups = -(-self.n_latents // group)
        self._centre = None if b_dec is None else b_dec.float().contiguous()
        self._bias = b_enc.float().contiguous()
        if self._half and self._centre is not None:
            self._bias, self._centre = folded_bias(w_enc, self._bias, self._centre), None
        self._scale = None if scale is None else scale.float().contiguous()
        self._norms = None if norm == "none" else row_norms(x, self._row_index, norm)
        self._sums = row_sums(w_enc) if self._half and norm == "layer_norm" else None

    def __iter__(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Slices of the rows, their scores [rows, M] and groups [rows, n_groups]: written anew for the next one."""
        tokens, device = rows_per_chunk(self.n_rows, self.n_latents), self._x.device
        buffer = torch.empty(tokens, padded(self.n_latents), dtype=torch.float32, device=device)
        kind = torch.int32 if self._theta is None else torch.uint8
        groups = torch.empty(tokens, self.n_groups, dtype=kind, device=device)
        for start in range(0, self.n_rows, tokens):
            rows = slice(start, min(start + tokens, self.n_rows))
            n_rows = rows.stop - rows.start
            scores = buffer[:n_rows, : self.n_latents]
            self._multiply(rows, scores, groups[:n_rows])
            yield rows, scores, groups[:n_rows]

    def _multiply(self, rows: slice, scores: Tensor, groups: Tensor) -> None:
        self._launch(rows, scores, groups, None)
        if self._norms is not None and self._sums is not None:
            # nothing is done, and nobody waits to know, where no row of the chunk is steep
            self._launch(rows, scores, groups, self._norms.steep[rows].amax(dim=0, keepdim=True))

    def _launch(self, rows: slice, scores: Tensor, groups: Tensor, some_steep: Tensor | None) -> None:
        """Multiply the rows of a chunk: all, or in float32 those that are steep."""
        x = self._x if self._row_index is not None else self._x[rows]
        index = None if self._row_index is None else self._row_index[rows]
        n_rows, width = len(scores), x.shape[1]
        programs, hopper = triton_runtime.device_of(x)
        half = self._half and some_steep is None
        tiles = tiles_for(half, hopper)
        by_block = hopper and half
        x_blocks = by_block and index is None and _fits_copy_engine(x)
        w_blocks = by_block and _fits_copy_engine(self._w)
        here = TensorDescriptor.from_tensor(x, [tiles.rows, tiles.channels]) if x_blocks else x
        weights = TensorDescriptor.from_tensor(self._w, [tiles.latents, tiles.channels]) if w_blocks else self._w
        n_tiles = triton.cdiv(n_rows, tiles.rows) * triton.cdiv(self.n_latents, tiles.latents)
        # an argument that is absent gets a tensor of its type that is not read
        any_float = self._bias
        bounds, norms = self._bounds, None if self._norms is None else self._norms.of(rows)
        per_row = (bounds.row_error[rows], bounds.row_size[rows]) if bounds else (any_float, any_float)
        per_latent = (bounds.latent_size, bounds.latent_error) if bounds else (any_float, any_float)
        normed = norms or (any_float,) * 4
        with triton_runtime.on_device_of(x):
            scores_kernel[(min(programs, n_tiles),)](
                here, weights, self._bias, _or(self._scale, any_float), _or(self._centre, any_float),
                _or(index, any_float), _or(self._theta, any_float), *per_row, *per_latent, *normed[:3],
                _or(self._sums, any_float), normed[3], _or(some_steep, any_float), scores, groups, n_rows, x.shape[0],
                self.n_latents, width, self.n_groups, *x.stride(), *self._w.stride(), scores.stride(0),
                HAS_INDEX=index is not None, HAS_SCALE=self._scale is not None,
                HAS_CENTRE=self._centre is not None, WIDEN=self._widen or not half, X_BLOCKS=x_blocks,
                W_BLOCKS=w_blocks, COUNT=self._theta is not None, BOUND=bounds is not None,
                NORM=0 if norms is None else (AFTER if half else BEFORE), CENTRED=self._sums is not None,
                ONLY_STEEP=some_steep is not None, BLOCK_N=tiles.rows, BLOCK_M=tiles.latents, BLOCK_D=tiles.channels,
                GROUP=self.group, STRIPE=8, num_warps=tiles.warps, num_stages=tiles.stages,
            )  # fmt: skip


def _or(tensor: Tensor | None, instead: Tensor) -> Tensor:
    return instead if tensor is None else tensor


def topk(
    x: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    k: int,
    b_dec: Tensor | None,
    scale: Tensor | None,
    row_index: Tensor | None,
    relu: bool,
    norm: str = "none",
) -> tuple[Tensor, Tensor]:
    """The contract of `ops.topk_encode`; arguments are checked but for row_index, none is float64."""
    group = group_size_for(w_enc.shape[0], k)
    return select(ScoreChunks(x, w_enc, b_enc, b_dec, scale, row_index, group, norm=norm), k, relu)


def select(chunks: ScoreChunks, k: int, relu: bool) -> tuple[Tensor, Tensor]:
    """The k best scores of each row, descending: values [N, k] float32, indices [N, k] int32."""
    device = chunks._x.device
    values = torch.empty(chunks.n_rows, k, dtype=torch.float32, device=device)
    indices = torch.empty(chunks.n_rows, k, dtype=torch.int32, device=device)
    compiled = device.type == "cuda" and compiled_select()
    for rows, scores, ranks in chunks:
        if compiled:
            native.module().topk_finish_cuda(
                native.address(scores), *scores.shape, scores.stride(0), native.address(ranks),
                chunks.group.bit_length() - 1, k, relu, native.address(values[rows]),
                native.address(indices[rows]), *queue_of(scores),
            )  # fmt: skip
        else:
            _select_rows(scores, ranks, chunks.group, relu, values[rows], indices[rows])
    return values, indices


def _select_rows(scores: Tensor, ranks: Tensor, group: int, relu: bool, values: Tensor, indices: Tensor) -> None:
    n_groups, k = ranks.shape[1], values.shape[1]
    chosen = triton.next_power_of_2(min(k, n_groups))
    sorted_scores = chosen * group
    with triton_runtime.on_device_of(scores):
        topk_kernel[(len(scores),)](
            scores, ranks, values, indices, scores.shape[1], scores.stride(0), n_groups, k, RELU=relu, GROUP=group,
            GROUPS=triton.next_power_of_2(n_groups), CHOSEN=chosen, KEPT=triton.next_power_of_2(k),
            num_warps=4 if sorted_scores <= 4096 else 8,
        )  # fmt: skip


def threshold_work(
    x: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    theta: Tensor | float,
    b_dec: Tensor | None,
    scale: Tensor | None,
    row_index: Tensor | None,
    norm: str = "none",
) -> csr_capacity.Work:
    """What makes the rows of `ops.threshold_encode`; arguments are checked but for row_index and NaN in theta, none is
    float64 but theta."""
    least = least_kept(theta, w_enc.shape[0], x.device)
    chunks = ScoreChunks(x, w_enc, b_enc, b_dec, scale, row_index, COUNT_GROUP, theta=least, norm=norm)

    def run(indptr: Tensor, indices: Tensor, values: Tensor) -> None:
        for rows, scores, counts in chunks:
            n_rows = len(scores)
            row_counts = torch.empty(n_rows, dtype=torch.int64, device=x.device)
            with triton_runtime.on_device_of(x):
                row_counts_kernel[(n_rows,)](counts, row_counts, chunks.n_groups, GROUPS=1024, num_warps=4)
                csr_capacity.indptr_of(row_counts.abs(), indptr, rows)
                threshold_kernel[(n_rows,)](
                    scores, least, counts, row_counts, indptr[rows], indices, values, chunks.n_latents,
                    scores.stride(0), chunks.n_groups, len(indices), GROUP=COUNT_GROUP, SPAN=32, num_warps=4,
                )  # fmt: skip

    return csr_capacity.Work(chunks.n_rows, chunks.n_latents, x.device, run)
