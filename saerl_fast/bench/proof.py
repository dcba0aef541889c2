"""The proof of a result, in float64 on the same inputs.

Boundary-gap rule: a score computed in float32 may differ from the float64 one by 2^-20 (|x| |w_j| + |b_j|), and
latents that lie within this of the boundary may stand for each other. Everything beyond it must be right.
Sums of n float32 numbers in order may differ by n 2^-24 times the sum of their sizes (the classical bound).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from saerl_fast.bench.contest import Verdict
from saerl_fast.bench.data import Encoder
from saerl_fast.ops import CsrRows, TopKCodes

GAP = 2.0**-20
ROUNDING = 2.0**-24
BLOCK_NUMBERS = 2**23


def selected(result: tuple[Tensor, Tensor], scores: Tensor, k: int) -> Verdict:
    """No arithmetic was done: the same bits as a stable sort, ties to the lower index."""
    values, order = scores.sort(dim=1, descending=True, stable=True)
    if not torch.equal(result[0], values[:, :k]):
        return Verdict("values differ from those of a stable sort")
    if not torch.equal(result[1].long(), order[:, :k]):
        return Verdict("indices differ from those of a stable sort")
    return Verdict()


def encoded(codes: TopKCodes, inputs: Encoder, k: int) -> Verdict:
    """The k largest scores, descending, then ReLU."""
    rows = len(inputs.x)
    if codes.values.shape != (rows, k) or codes.indices.shape != (rows, k):
        return Verdict(f"wanted values and indices [{rows}, {k}]; got {list(codes.values.shape)}")
    if bool((codes.values.diff(dim=1) > 0).any()):
        return Verdict("values are not descending")
    swapped = 0
    for block, h, slack in _scores(inputs):
        indices, values = codes.indices[block].long(), codes.values[block].double()
        chosen = torch.zeros_like(h, dtype=torch.bool).scatter_(1, indices, True)
        if not bool((chosen.sum(dim=1) == k).all()):
            return Verdict("a latent occurs twice in a row")
        kth = h.topk(k, dim=1).values[:, -1:]
        if failure := _outside(chosen, h, kth, slack):
            return Verdict(failure)
        error = (values - h.gather(1, indices).clamp(min=0)).abs()
        if not bool((error <= slack.gather(1, indices)).all()):
            return Verdict(f"a value is off by {float(error.max()):.3g}")
        swapped += int((chosen & (h < kth)).any(dim=1).sum())
    return Verdict(facts={"rows_by_gap_rule": swapped / max(1, rows)})


def densely_encoded(dense: Tensor, inputs: Encoder, k: int) -> Verdict:
    """The k largest scores and then ReLU, as a dense [rows, latents] array; of k or fewer entries a row."""
    if dense.shape != (len(inputs.x), len(inputs.w_enc)):
        return Verdict(f"wanted [{len(inputs.x)}, {len(inputs.w_enc)}]; got {list(dense.shape)}")
    swapped = 0
    for block, h, slack in _scores(inputs):
        found = dense[block].double()
        chosen = found != 0
        if int(chosen.sum(dim=1).max()) > k:
            return Verdict(f"a row has more than k = {k} features")
        boundary = h.topk(k, dim=1).values[:, -1:].clamp(min=0)
        if failure := _outside(chosen, h, boundary, slack):
            return Verdict(failure)
        error = torch.where(chosen, (found - h).abs(), 0)
        if not bool((error <= slack).all()):
            return Verdict(f"a value is off by {float(error.max()):.3g}")
        swapped += int((chosen != (h >= boundary)).any(dim=1).sum())
    return Verdict(facts={"rows_by_gap_rule": swapped / max(1, len(inputs.x))})


def thresholded(codes: CsrRows, inputs: Encoder, theta: float) -> Verdict:
    """Every score above theta and above 0, in sparse rows with ascending indices."""
    if len(codes.indptr) != len(inputs.x) + 1 or int(codes.indptr[-1]) != len(codes.indices):
        return Verdict("indptr does not fit the rows")
    row_of = torch.arange(len(inputs.x)).repeat_interleave(codes.indptr.diff())
    if not bool((torch.diff(row_of * len(inputs.w_enc) + codes.indices) > 0).all()):
        return Verdict("indices of a row do not ascend")
    boundary = torch.tensor(max(theta, 0.0), dtype=torch.float64)
    swapped = 0
    for block, h, slack in _scores(inputs):
        entries = slice(int(codes.indptr[block.start]), int(codes.indptr[block.start + len(h)]))
        row, indices = row_of[entries] - block.start, codes.indices[entries].long()
        kept = torch.zeros_like(h, dtype=torch.bool)
        kept[row, indices] = True
        if failure := _outside(kept, h, boundary, slack):
            return Verdict(failure)
        error = (codes.values[entries].double() - h[row, indices]).abs()
        if not bool((error <= slack[row, indices]).all()):
            return Verdict(f"a value is off by {float(error.max()):.3g}")
        swapped += int((kept != (h > boundary)).any(dim=1).sum())
    return Verdict(facts={"rows_by_gap_rule": swapped / max(1, len(inputs.x))})


def _scores(inputs: Encoder) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows, their scores in float64, and by how much a float32 score may differ; block by block."""
    w, b = inputs.w_enc.double(), inputs.b_enc.double()
    norms = torch.linalg.vector_norm(w, dim=1)
    step = max(1, BLOCK_NUMBERS // len(w))
    for start in range(0, len(inputs.x), step):
        block = slice(start, start + step)
        x = inputs.x[block].double() - inputs.b_dec.double()
        slack = GAP * (torch.linalg.vector_norm(x, dim=1, keepdim=True) * norms + b.abs())
        yield block, torch.addmm(b, x, w.T), slack


def _outside(chosen: Tensor, h: Tensor, boundary: Tensor, slack: Tensor) -> str | None:
    """A latent on the wrong side of the boundary by more than the gap."""
    missing = int((~chosen & (h > boundary + slack)).sum())
    foreign = int((chosen & (h < boundary - slack)).sum())
    if missing or foreign:
        return f"{missing} latents above the boundary are missing, {foreign} below it were kept"
    return None


def pooled(rows: CsrRows, codes: TopKCodes, offsets: Tensor, latents: int) -> Verdict:
    """Mean pooling of positive codes: the union of each sample's latents, ascending, and their means."""
    from scipy import sparse

    tokens, k = codes.indices.shape
    whole = (codes.values.double().numpy().ravel(), codes.indices.numpy().ravel(), np.arange(tokens + 1) * k)
    member = (np.ones(tokens), np.arange(tokens), offsets.numpy())
    samples = len(offsets) - 1
    total = sparse.csr_array(member, shape=(samples, tokens)) @ sparse.csr_array(whole, shape=(tokens, latents))
    total.sort_indices()
    if not np.array_equal(total.indptr, rows.indptr.numpy()) or not np.array_equal(total.indices, rows.indices.numpy()):
        return Verdict("the latents of a sample are not the union of its tokens' latents in ascending order")
    length = np.repeat(np.diff(offsets.numpy()), np.diff(total.indptr))
    mean = total.data / length
    error = np.abs(rows.values.double().numpy() - mean)
    if not (error <= (length + 1) * ROUNDING * mean).all():
        return Verdict(f"a mean is off by {error.max():.3g}")
    return Verdict(facts={"mean_density": len(mean) / (samples * latents)})


def clustered(result: tuple[Tensor, Tensor, Tensor], rows: CsrRows, centroids: Tensor) -> Verdict:
    """Labels of nearest centroids (the gap rule decides near ties), and the sums and counts of these labels.

    result: labels [S], sums [K, M], counts [K]; the rows hold positive values.
    """
    from scipy import sparse

    labels, sums, counts = result
    clusters, latents = centroids.shape
    if len(labels) != len(rows.indptr) - 1 or sums.shape != centroids.shape or not _in_range(labels, clusters):
        return Verdict("labels or sums do not fit the rows and centroids")
    indptr, indices, values = (part.numpy() for part in rows)
    data = sparse.csr_array((values.astype(np.float64), indices, indptr), shape=(len(labels), latents))
    swapped = 0
    step = max(1, BLOCK_NUMBERS // latents)
    for start in range(0, len(labels), step):
        block = slice(start, start + step)
        distance, slack = _distances(torch.from_numpy(data[block].toarray()), centroids.double())
        nearest = distance.min(dim=1)
        label = labels[block].long()[:, None]
        excess = distance.gather(1, label)[:, 0] - nearest.values
        allowed = slack.gather(1, label)[:, 0] + slack.gather(1, nearest.indices[:, None])[:, 0]
        if not bool((excess <= allowed).all()):
            return Verdict(f"{int((excess > allowed).sum())} rows are not with their nearest centroid")
        swapped += int((excess > 0).sum())
    number = np.bincount(labels.numpy(), minlength=clusters)
    if not np.array_equal(counts.numpy(), number):
        return Verdict("counts are not those of the labels")
    member = sparse.csr_array(
        (np.ones(len(labels)), (labels.numpy(), np.arange(len(labels)))), shape=(clusters, len(labels))
    )
    total = (member @ data).toarray()
    error = np.abs(sums.double().numpy() - total)
    if not (error <= number[:, None] * ROUNDING * total).all():
        return Verdict(f"a sum is off by {error.max():.3g}")
    return Verdict(facts={"rows_by_gap_rule": swapped / max(1, len(labels))})


def _in_range(labels: Tensor, clusters: int) -> bool:
    return bool(((labels >= 0) & (labels < clusters)).all())


def _distances(x: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """|c|^2 - 2 x.c in float64, and by how much a float32 one may differ."""
    squares = centroids.square().sum(dim=1)
    size = torch.linalg.vector_norm(x, dim=1, keepdim=True) * squares.sqrt()
    return torch.addmm(squares, x, centroids.T, alpha=-2), GAP * (2 * size + squares)
