"""Every operation in plain PyTorch. This file is the specification; each fast path must agree with it.

Sizes: N rows (tokens), D model width, M latents, K clusters, S samples; k kept latents.
Nothing here checks its arguments: the public functions beside this file do. Work goes in blocks of
rows, so that no dense array of N x M numbers exists for large N.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from saerl_fast.codes import CsrRows, TopKCodes
from saerl_fast.kernels.input_norm import InputNorm, normalised
from saerl_fast.kernels.precision import full_float32

BLOCK_NUMBERS = 2**24
"""Upper bound on the numbers in one dense block (64 MB of float32)."""

PoolMode = Literal["mean", "max", "sum", "last", "count"]
Metric = Literal["euclidean", "cosine"]


def row_blocks(n_rows: int, width: int) -> Iterator[slice]:
    """Slices that cover the rows, each of at most BLOCK_NUMBERS numbers (one row at least)."""
    step = max(1, BLOCK_NUMBERS // max(1, width))
    return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def scores(x: Tensor, w_enc: Tensor, b_enc: Tensor, b_dec: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
    """h = scale * ((x - b_dec) w_enc^T + b_enc), in float32 at least."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, w_enc.dtype), torch.float32)
    centred = x.to(dtype) if b_dec is None else x.to(dtype) - b_dec.to(dtype)
    with full_float32():
        h = torch.addmm(b_enc.to(dtype), centred, w_enc.to(dtype).T)
    return h if scale is None else h * scale.to(dtype)


def topk_encode(
    x: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    k: int,
    b_dec: Tensor | None,
    scale: Tensor | None,
    row_index: Tensor | None,
    relu: bool,
    norm: InputNorm = "none",
) -> TopKCodes:
    """The k largest scores of each row, descending; ties go to the lower index. x is normalised first."""
    n_rows = x.shape[0] if row_index is None else row_index.shape[0]
    values = torch.empty(n_rows, k, dtype=torch.float32, device=x.device)
    indices = torch.empty(n_rows, k, dtype=torch.int32, device=x.device)
    for rows in row_blocks(n_rows, w_enc.shape[0]):
        chosen = x[rows] if row_index is None else x[row_index[rows]]
        h = scores(normalised(chosen, norm), w_enc, b_enc, b_dec, scale)
        ordered, order = h.sort(dim=1, descending=True, stable=True)
        top = torch.where(ordered[:, :k] > 0, ordered[:, :k], 0) if relu else ordered[:, :k]
        spoilt = h.isnan().any(dim=1, keepdim=True)
        values[rows] = torch.where(spoilt, torch.nan, top)
        indices[rows] = torch.where(spoilt, torch.arange(k, device=x.device), order[:, :k])
    return TopKCodes(values, indices)


def topk_encode_certified(
    x: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    k: int,
    b_dec: Tensor | None,
    scale: Tensor | None,
    row_index: Tensor | None,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`topk_encode` in float64, rounded once; no row is certified by a screen, all are scored for every latent."""
    b_dec, scale = (None if part is None else part.double() for part in (b_dec, scale))
    values, indices = topk_encode(x.double(), w_enc.double(), b_enc.double(), k, b_dec, scale, row_index, relu)
    return values, indices, torch.zeros(len(values), dtype=torch.bool, device=x.device)


def threshold_encode(
    x: Tensor,
    w_enc: Tensor,
    b_enc: Tensor,
    theta: Tensor | float,
    b_dec: Tensor | None,
    scale: Tensor | None,
    row_index: Tensor | None,
    norm: InputNorm = "none",
) -> CsrRows:
    """All scores of x, normalised, above theta and 0. A row with a NaN score keeps one entry: index 0, value NaN."""
    n_rows = x.shape[0] if row_index is None else row_index.shape[0]
    counts, indices, values = [], [], []
    for rows in row_blocks(n_rows, w_enc.shape[0]):
        chosen = x[rows] if row_index is None else x[row_index[rows]]
        h = scores(normalised(chosen, norm), w_enc, b_enc, b_dec, scale)
        spoilt = h.isnan().any(dim=1)
        keep = (h > theta) & (h > 0) & ~spoilt[:, None]
        h[spoilt, 0] = torch.nan
        keep[:, 0] |= spoilt
        counts.append(keep.sum(dim=1))
        indices.append(keep.nonzero()[:, 1].int())
        values.append(h[keep].float())
    if not counts:
        counts, indices, values = [x.new_empty(0).long()], [x.new_empty(0).int()], [x.new_empty(0).float()]
    return CsrRows(_indptr(torch.cat(counts)), torch.cat(indices), torch.cat(values))


def decode(codes: TopKCodes | CsrRows, w_dec: Tensor, b_dec: Tensor) -> Tensor:
    """b_dec + sum over the kept latents of value * w_dec[index]."""
    dtype = torch.promote_types(torch.promote_types(w_dec.dtype, codes.values.dtype), torch.float32)
    rows = as_csr(codes)
    summed = functional.embedding_bag(
        rows.indices.long(),
        w_dec.to(dtype),
        rows.indptr,
        mode="sum",
        per_sample_weights=rows.values.to(dtype),
        include_last_offset=True,
    )
    return summed + b_dec.to(dtype)


def project(csr: CsrRows, matrix: Tensor) -> Tensor:
    """csr [S, M] @ matrix [M, r]."""
    n_rows = csr.indptr.shape[0] - 1
    projected = torch.empty(n_rows, matrix.shape[1], dtype=torch.float32, device=matrix.device)
    for rows in row_blocks(n_rows, matrix.shape[0]):
        with full_float32():
            projected[rows] = dense_rows(csr, rows, matrix.shape[0]) @ matrix.float()
    return projected


def project_weighted(csr: CsrRows, matrix: Tensor, weights: Tensor, value_transform: str) -> Tensor:
    """(w / |w|) matrix of each row, w = f(row) * weights; zeros where w is zero."""
    even = csr._replace(values=transformed(csr.values.float(), value_transform))
    weights = weights.float()
    projected = project(even, matrix.float() * weights[:, None])
    for rows in row_blocks(len(projected), matrix.shape[0]):
        weighted = dense_rows(even, rows, matrix.shape[0]).double() * weights.double()
        length = weighted.square().sum(dim=1, keepdim=True).sqrt()
        projected[rows] = (projected[rows].double() / torch.where(length == 0, 1, length)).float()
    return projected


def transformed(values: Tensor, how: str) -> Tensor:
    """sign(v) f(|v|), with f the square root, log(1 + v), or nothing; zero stays zero."""
    if how == "none":
        return values
    return (values.abs().sqrt() if how == "sqrt" else values.abs().log1p()).copysign(values)


def segment_pool(codes: TopKCodes | CsrRows, offsets: Tensor, n_latents: int, mode: PoolMode) -> CsrRows:
    """Pool the dense [tokens, M] array that the codes stand for, segment by segment, without writing it."""
    tokens = as_csr(codes)
    n_segments = offsets.shape[0] - 1
    lengths = offsets.diff()
    entries_per_token = tokens.indptr.diff()
    token = torch.arange(len(entries_per_token), device=offsets.device).repeat_interleave(entries_per_token)
    segment = torch.arange(n_segments, device=offsets.device).repeat_interleave(lengths)[token]
    kept = tokens.values != 0
    if mode == "last":
        kept &= token == offsets[segment + 1] - 1
    # one key per (segment, latent); the sort is stable, so the values of a key stay in token order
    key, order = (segment * n_latents + tokens.indices)[kept].sort(stable=True)
    values = tokens.values[kept][order]
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    key, occurrences = torch.unique_consecutive(key, return_counts=True)
    segment, indices = key // n_latents, key % n_latents
    if mode == "count":
        pooled = occurrences.float()
    elif mode == "max":
        pooled = torch.segment_reduce(values, "max", lengths=occurrences, unsafe=True)
        # a latent absent from some token of the segment is zero there
        pooled = torch.where((occurrences < lengths[segment]) & (pooled < 0), 0, pooled)
    else:
        pooled = torch.segment_reduce(values, "sum", lengths=occurrences, unsafe=True)
        if mode == "mean":
            pooled = pooled / lengths[segment]
    kept = pooled != 0
    counts = torch.bincount(segment[kept], minlength=n_segments)
    return CsrRows(_indptr(counts), indices[kept].int(), pooled[kept])


def kmeans_assign(rows: Tensor | CsrRows, centroids: Tensor, metric: Metric) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each row, and the distance to it (squared, or 1 - cosine)."""
    n_rows = rows.indptr.shape[0] - 1 if isinstance(rows, CsrRows) else rows.shape[0]
    centres = centroids.float()
    if metric == "cosine":
        centres = functional.normalize(centres)
    labels = torch.empty(n_rows, dtype=torch.int32, device=centroids.device)
    score = torch.empty(n_rows, dtype=torch.float32, device=centroids.device)
    for block in row_blocks(n_rows, centroids.shape[1]):
        x = dense_rows(rows, block, centroids.shape[1])
        with full_float32():
            if metric == "cosine":
                distance = 1 - functional.normalize(x) @ centres.T
            else:
                # |x - c|^2 without |x|^2, which is the same for every centroid
                distance = torch.addmm(centres.square().sum(dim=1), x, centres.T, alpha=-2)
        nearest, label = distance.min(dim=1)
        if metric == "euclidean":
            nearest = nearest + x.square().sum(dim=1)
        labels[block] = label
        score[block] = nearest.clamp(min=0)
    return labels, score


def kmeans_update(rows: Tensor | CsrRows, labels: Tensor, n_clusters: int, n_latents: int) -> tuple[Tensor, Tensor]:
    """Per cluster, the sum of its rows (added in row order) and their number."""
    counts = torch.bincount(labels, minlength=n_clusters)
    if isinstance(rows, CsrRows):
        cluster = labels.long().repeat_interleave(rows.indptr.diff())
        sums = _ordered_sum(cluster * n_latents + rows.indices, rows.values.float(), n_clusters * n_latents)
        return sums.view(n_clusters, n_latents), counts
    return _ordered_sum(labels.long(), rows.float(), n_clusters), counts


def as_csr(codes: TopKCodes | CsrRows) -> CsrRows:
    """TopK codes as rows of equal length (not sorted by index); CSR as it is."""
    if isinstance(codes, CsrRows):
        return codes
    n_rows, k = codes.indices.shape
    indptr = torch.arange(n_rows + 1, device=codes.indices.device) * k
    return CsrRows(indptr, codes.indices.reshape(-1), codes.values.reshape(-1))


def dense_rows(rows: Tensor | CsrRows, block: slice, width: int) -> Tensor:
    """The rows of one block as a dense float32 array [rows, width]."""
    if isinstance(rows, Tensor):
        return rows[block].float()
    indptr = rows.indptr[block.start : block.stop + 1]
    entries = slice(int(indptr[0]), int(indptr[-1]))
    row = torch.arange(len(indptr) - 1, device=indptr.device).repeat_interleave(indptr.diff())
    dense = torch.zeros(len(indptr) - 1, width, dtype=torch.float32, device=indptr.device)
    dense[row, rows.indices[entries].long()] = rows.values[entries].float()
    return dense


def _indptr(counts: Tensor) -> Tensor:
    return functional.pad(counts.long().cumsum(0), (1, 0))


def _ordered_sum(index: Tensor, source: Tensor, size: int) -> Tensor:
    """out[index[i]] += source[i] in the order of i."""
    out = torch.zeros(size, *source.shape[1:], dtype=torch.float32, device=source.device)
    if source.device.type == "cuda":
        # index_add_ uses atomics there; this one sorts
        return out.index_put_((index,), source, accumulate=True)
    return out.index_add_(0, index, source)
