"""The scores of an encode on an NVIDIA GPU, chunk by chunk, by cuBLAS.

    scores = x w_enc^T                   for 16-bit x and w_enc of one type, as they are, on the tensor cores
    scores = (x - b_dec) w_enc^T         otherwise, in float32 throughout

Written in float32 into one reused buffer. What is missing to h = scale * ((x - b_dec) w_enc^T + b_enc) is a bias and
a scale per column, which the selects add on the way: `bias` is b_enc, or b_enc - w_enc b_dec where x was taken as it
is (summed in float64, folded_bias.py).

Floor:  the product, 96 ns a token at D 1536 and 24,576 latents in 16 bits on an H200, and the write of its scores,
        23 ns, which cuBLAS does not leave out.
Trick:  none but the size of a chunk: whole tiles, and a buffer (512 MB) that the next chunk takes over.

cuBLAS wants rows that lie a fixed distance apart, and those that row_index names do not. They are copied, a chunk at a
time into one place (csrc/cuda/gather_rows.cu): 17 MB for 5,461 tokens of 1,536, and 1.4 ns a token, where backend
`triton` reads them as they lie. A row_index that names no row of x makes a row of NaN. Only x whose columns do not lie
side by side is copied whole before that; no hook hands over such.

An input norm is applied to each chunk, in float32: backend `triton`, which keeps 16-bit x on the tensor cores all the
same, is taken before this one there. Nothing here waits for the device. Not timed yet: docs/measured.md.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import Tensor

from saerl_fast.kernels import gpu, native
from saerl_fast.kernels.folded_bias import folded_bias
from saerl_fast.kernels.input_norm import InputNorm, normalised
from saerl_fast.kernels.precision import full_float32

BUFFER_NUMBERS = 2**27
"""Numbers in the buffer (512 MB): 2,730 tokens at 49,152 latents."""
TILE_ROWS = 128
"""Rows of a tile of the product: a chunk of another number leaves tiles half empty."""
HALVES = (torch.bfloat16, torch.float16)


def rows_per_chunk(n_rows: int, n_latents: int) -> int:
    """How many rows go through the buffer at a time: chunks of like size, and whole tiles where they hold one."""
    most = max(1, BUFFER_NUMBERS // padded(n_latents))
    most -= most % TILE_ROWS if most >= TILE_ROWS else 0
    even = -(-n_rows // max(1, -(-n_rows // most)))
    tiled = -(-even // TILE_ROWS) * TILE_ROWS
    return max(1, min(n_rows, tiled if tiled <= most else even))


def padded(n_latents: int) -> int:
    """Numbers from one row of the buffer to the next: rows start at a multiple of 16 bytes."""
    return -(-n_latents // 4) * 4


def missing() -> str | None:
    """Why no compiled CUDA kernel can run here, or None."""
    reason = native.missing()
    if reason is not None:
        return reason
    if not native.module().cuda:
        why = native.build_record().get("cuda_reason") or "nvcc was not found"
        return f"built without CUDA kernels: {why}; install again where nvcc is (SAERL_BUILD=cuda insists on it)"
    return gpu.missing() or _refused(torch.cuda.device_count())


@functools.cache
def _refused(devices: int) -> str | None:
    """The reason of the first of so many devices that does not take the compiled kernels."""
    for index in range(devices):
        if text := native.module().cuda_probe(index):
            return f"GPU {index} does not take the compiled kernels: {text}; update its driver, or build on its machine"
    return None


def queue_of(tensor: Tensor) -> tuple[int, int]:
    """The device that holds a tensor, and the caller's stream there: where a kernel is queued."""
    stream = torch.cuda.current_stream(tensor.device)
    return int(stream.device_index), int(stream.cuda_stream)


class ScoreChunks:
    """An encoder and its rows, ready to be multiplied."""

    def __init__(
        self,
        x: Tensor,
        w_enc: Tensor,
        b_enc: Tensor,
        b_dec: Tensor | None,
        scale: Tensor | None,
        row_index: Tensor | None,
        norm: InputNorm = "none",
    ) -> None:
        same = x.dtype == w_enc.dtype and x.dtype in HALVES and norm == "none"
        self._as_they_are = same and hasattr(torch.ops.aten.mm, "dtype_out")
        self._norm = norm
        # a row must lie together to be copied
        self._x = x if row_index is None or x.stride(1) == 1 else x.contiguous()
        self._w = w_enc if self._as_they_are else w_enc.float()
        self._row_index = None if row_index is None else row_index.contiguous()
        self._centre = None if b_dec is None or self._as_they_are else b_dec.float()
        self.n_rows = x.shape[0] if row_index is None else row_index.shape[0]
        self.n_latents = w_enc.shape[0]
        self.bias = b_enc.float().contiguous()
        if b_dec is not None and self._as_they_are:
            self.bias = folded_bias(w_enc, self.bias, b_dec.float().contiguous())
        self.scale = None if scale is None else scale.float().contiguous()

    def __iter__(self) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the rows, and their scores [rows, M]: the buffer is written anew for the next one."""
        tokens = rows_per_chunk(self.n_rows, self.n_latents)
        buffer = torch.empty(tokens, padded(self.n_latents), dtype=torch.float32, device=self._x.device)
        gathered = self._x.new_empty(0 if self._row_index is None else tokens, self._x.shape[1])
        for start in range(0, self.n_rows, tokens):
            rows = slice(start, min(start + tokens, self.n_rows))
            scores = buffer[: rows.stop - start, : self.n_latents]
            with torch.no_grad():  # of parameters torch writes no product into a buffer
                self._multiply(self._chunk(rows, gathered), scores)
            yield rows, scores

    def _chunk(self, rows: slice, gathered: Tensor) -> Tensor:
        if self._row_index is None:
            return self._x[rows]
        x, index = self._x, self._row_index[rows]
        item = x.element_size()
        native.module().gather_rows_cuda(
            native.address(x), x.shape[0], x.shape[1] * item, x.stride(0) * item, native.address(index), len(index),
            native.address(gathered), *queue_of(x),
        )  # fmt: skip
        return gathered[: len(index)]

    def _multiply(self, chunk: Tensor, scores: Tensor) -> None:
        if self._as_they_are:
            half_product(chunk, self._w, scores)
            return
        seen = normalised(chunk, self._norm).float()
        centred = seen if self._centre is None else seen - self._centre
        with full_float32():
            torch.mm(centred, self._w.T, out=scores)


def half_product(x: Tensor, w: Tensor, scores: Tensor) -> None:
    """scores = x w^T of 16-bit matrices, accumulated and written in float32 (torch.mm with `out_dtype`)."""
    torch.ops.aten.mm.dtype_out(x, w.T, torch.float32, out=scores)
