"""One iteration of k-means on a device: pooled sparse rows, and projected dense ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from saerl_fast import ops
from saerl_fast.bench import flash_kmeans, proof
from saerl_fast.bench.contest import Call, Contest, Verdict
from saerl_fast.bench.data import mean_centroids, pooled_rows
from saerl_fast.bench.gpu_data import repeated
from saerl_fast.bench.gpu_encode import backend_on, sample_of
from saerl_fast.kernels import triton_runtime
from saerl_fast.ops import CsrRows

DIFFERENT_ROWS = 10_000
"""Rows are made on the host, which takes its time; beyond these they come again, in turn."""
CHUNK_NUMBERS = 2**27
"""Numbers in a densified chunk (512 MB)."""

Result = tuple[Tensor, Tensor, Tensor]


def kmeans_iter(rows: int, latents: int, clusters: int, density: float, device: torch.device) -> Contest:
    """Sparse rows against torch.sparse.mm and densified chunks with cuBLAS, whichever is fastest."""
    made = pooled_rows(min(rows, DIFFERENT_ROWS), latents, density)
    centroids = mean_centroids(made, latents, clusters).to(device)
    csr = _tiled(made, rows, device)
    row_of = torch.arange(rows, device=device).repeat_interleave(csr.indptr.diff())
    sparse = torch.sparse_csr_tensor(
        csr.indptr, csr.indices.long(), csr.values, (rows, latents), check_invariants=False
    )

    def ours() -> Result:
        labels, _ = ops.kmeans_assign(csr, centroids)
        sums, counts = ops.kmeans_update(csr, labels, clusters, n_latents=latents)
        return labels, sums, counts

    def by_sparse_product() -> Result:
        scores = torch.sparse.mm(sparse, centroids.T)
        labels = torch.add(centroids.square().sum(dim=1), scores, alpha=-2).argmin(dim=1)
        sums = torch.zeros_like(centroids)
        sums.view(-1).index_add_(0, labels[row_of] * latents + csr.indices, csr.values)
        return labels, sums, torch.bincount(labels, minlength=clusters)

    return Contest(
        ours=ours,
        baselines={"torch.sparse.mm": by_sparse_product, **_precisions("densified chunks", _densified(csr, centroids))},
        prove=lambda result: _proved(result, csr, centroids, row_of),
        backend=f"{backend_on(device, 'kmeans_assign')}, {backend_on(device, 'kmeans_update')}",
        facts={"mean_density": len(csr.indices) / (rows * latents), "different_rows": len(made.indptr) - 1}
        | left_open(csr, centroids),
    )


def kmeans_iter_dense(rows: int, columns: int, clusters: int, device: torch.device) -> Contest:
    """Dense rows, as projection leaves them, against chunks with cuBLAS, argmin and index_add, and flash-kmeans."""
    generator = torch.Generator(device).manual_seed(10)
    middles = torch.randn(clusters, columns, device=device, generator=generator)
    x = middles.repeat(-(-rows // clusters), 1)[:rows] + torch.randn(rows, columns, device=device, generator=generator)
    centroids = middles + 0.1 * torch.randn(clusters, columns, device=device, generator=generator)

    def ours() -> Result:
        labels, _ = ops.kmeans_assign(x, centroids)
        sums, counts = ops.kmeans_update(x, labels, clusters)
        return labels, sums, counts

    def in_chunks() -> Result:
        squares = centroids.square().sum(dim=1)
        step = max(1, CHUNK_NUMBERS // clusters)
        labels = torch.cat(
            [torch.addmm(squares, part, centroids.T, alpha=-2).argmin(dim=1) for part in torch.split(x, step)]
        )
        sums = torch.zeros_like(centroids).index_add_(0, labels, x)
        return labels, sums, torch.bincount(labels, minlength=clusters)

    other = proved_flash_kmeans(x, centroids)
    further, said = (other, "proved") if isinstance(other, dict) else ({}, other)
    return Contest(
        ours=ours,
        baselines=_precisions("cuBLAS and argmin", in_chunks) | further,
        prove=lambda result: _proved_dense(result, x, centroids),
        backend=f"{backend_on(device, 'kmeans_assign')}, {backend_on(device, 'kmeans_update')}",
        facts=left_open(x, centroids) | {"flash_kmeans": said},
    )


def proved_flash_kmeans(x: Tensor, centroids: Tensor) -> dict[str, Call] | str:
    """flash-kmeans as a baseline, or why it is none: not here, not running here, or wrong."""
    if reason := flash_kmeans.missing(x.device):
        return reason
    try:
        call = flash_kmeans.iteration(x, centroids)
        reason = flash_kmeans.wrong(call(), x, centroids, sample_of(len(x), x.device))
    except Exception as error:  # noqa: BLE001 (what another package raises is one baseline less, and said)
        reason = f"{type(error).__name__}: {str(error).strip()[:200]}"
    return f"left out, {reason}" if reason else {"flash-kmeans": call}


def left_open(rows: Tensor | CsrRows, centroids: Tensor) -> dict[str, float]:
    """The share of rows that the screen of backend `triton` leaves to float32, where these rows go through it."""
    if triton_runtime.refuses(centroids.device.type) is not None:
        return {}
    from saerl_fast.kernels import kmeans_triton, nearest_screened

    n_clusters, n_latents = centroids.shape
    if not nearest_screened.pays(rows, n_latents, n_clusters):
        return {}
    centres = kmeans_triton.centres_of(centroids, "euclidean")
    found = kmeans_triton.nearest(rows, centres)
    return {"rows_left_open": int(nearest_screened.screened_nearest(rows, centres, found)) / len(found.labels)}


def _tiled(made: CsrRows, rows: int, device: torch.device) -> CsrRows:
    """As many rows as are wanted: those made, again and again."""
    times = -(-rows // (len(made.indptr) - 1))
    lengths = repeated(made.indptr.diff(), times)[:rows]
    indptr = functional.pad(lengths.cumsum(0), (1, 0))
    entries = int(indptr[-1])
    indices, values = (repeated(part.to(device), times)[:entries] for part in (made.indices, made.values))
    return CsrRows(indptr.to(device), indices, values)


def _densified(csr: CsrRows, centroids: Tensor) -> Call:
    """A chunk of rows at a time as a dense array: one product to assign, one to sum."""
    latents = centroids.shape[1]
    step = max(1, CHUNK_NUMBERS // latents)
    bounds = csr.indptr.cpu().tolist()

    def iteration() -> Result:
        squares, sums, labels = centroids.square().sum(dim=1), torch.zeros_like(centroids), []
        for start in range(0, len(bounds) - 1, step):
            stop = min(start + step, len(bounds) - 1)
            x = _dense(csr, bounds, start, stop, latents)
            label = torch.addmm(squares, x, centroids.T, alpha=-2).argmin(dim=1)
            member = torch.zeros(len(centroids), len(x), device=x.device)
            sums.addmm_(member.scatter_(0, label[None], 1.0), x)
            labels.append(label)
        joined = torch.cat(labels)
        return joined, sums, torch.bincount(joined, minlength=len(centroids))

    return iteration


def _dense(csr: CsrRows, bounds: list[int], start: int, stop: int, latents: int) -> Tensor:
    """Rows start : stop as a dense array; bounds is indptr on the host."""
    first, last = bounds[start], bounds[stop]
    row = torch.arange(stop - start, device=csr.indices.device).repeat_interleave(
        csr.indptr[start : stop + 1].diff(), output_size=last - first
    )
    x = torch.zeros(stop - start, latents, device=csr.indices.device)
    x[row, csr.indices[first:last].long()] = csr.values[first:last]
    return x


def _precisions(name: str, call: Call) -> dict[str, Call]:
    """The same call with float32 products as they are, and rounded to TF32: faster, and not exact."""

    def rounded() -> object:
        with _tf32():
            return call()

    return {f"{name}, float32": call, f"{name}, TF32": rounded}


@contextmanager
def _tf32() -> Iterator[None]:
    settings = torch.backends.cuda.matmul
    name, allowed = ("fp32_precision", "tf32") if hasattr(settings, "fp32_precision") else ("allow_tf32", True)
    before = getattr(settings, name)
    setattr(settings, name, allowed)
    try:
        yield
    finally:
        setattr(settings, name, before)


def _proved(result: Result, csr: CsrRows, centroids: Tensor, row_of: Tensor) -> Verdict:
    """Labels of a sample by the gap rule, all counts, all sums in float64."""
    labels, sums, counts = result
    rows, latents = len(csr.indptr) - 1, centroids.shape[1]
    if labels.shape != (rows,) or sums.shape != centroids.shape:
        return Verdict("labels or sums do not fit the rows and centroids")
    bounds = csr.indptr.cpu().tolist()
    chosen = sample_of(rows, labels.device)
    x = torch.cat([_dense(csr, bounds, row, row + 1, latents) for row in chosen.tolist()])
    swapped = _nearest(labels[chosen], x, centroids)
    if isinstance(swapped, str):
        return Verdict(swapped)

    def total() -> Tensor:
        made = torch.zeros(centroids.numel(), dtype=torch.float64, device=labels.device)
        for start in range(0, len(csr.indices), CHUNK_NUMBERS // 4):
            part = slice(start, start + CHUNK_NUMBERS // 4)
            made.index_add_(0, labels[row_of[part]].long() * latents + csr.indices[part], csr.values[part].double())
        return made.view_as(centroids)

    return _summed(labels, sums, counts, total, lambda true: true, swapped)


def _proved_dense(result: Result, x: Tensor, centroids: Tensor) -> Verdict:
    labels, sums, counts = result
    if labels.shape != (len(x),) or sums.shape != centroids.shape:
        return Verdict("labels or sums do not fit the rows and centroids")
    chosen = sample_of(len(x), labels.device)
    swapped = _nearest(labels[chosen], x[chosen], centroids)
    if isinstance(swapped, str):
        return Verdict(swapped)

    def added(rows: Tensor) -> Tensor:
        made = torch.zeros(centroids.shape, dtype=torch.float64, device=x.device)
        return made.index_add_(0, labels.long(), rows.double())

    return _summed(labels, sums, counts, lambda: added(x), lambda _: added(x.abs()), swapped)


def _nearest(label: Tensor, x: Tensor, centroids: Tensor) -> float | str:
    """The share of rows that needed the gap rule, or what is wrong."""
    if not bool(((label >= 0) & (label < len(centroids))).all()):
        return "a label names no cluster"
    distance, slack = proof._distances(x.double(), centroids.double())
    nearest = distance.min(dim=1)
    at = label.long()[:, None]
    excess = distance.gather(1, at)[:, 0] - nearest.values
    allowed = slack.gather(1, at)[:, 0] + slack.gather(1, nearest.indices[:, None])[:, 0]
    if bool((excess > allowed).any()):
        return f"{int((excess > allowed).sum())} of {len(x)} rows are not with their nearest centroid"
    return int((excess > 0).sum()) / len(x)


def _summed(
    labels: Tensor,
    sums: Tensor,
    counts: Tensor,
    total: Callable[[], Tensor],
    sizes: Callable[[Tensor], Tensor],
    swapped: float,
) -> Verdict:
    """total: the sums of these labels in float64; sizes: the sums of the absolute values."""
    number = torch.bincount(labels.long(), minlength=len(sums))
    if not torch.equal(counts.long(), number):
        return Verdict("counts are not those of the labels")
    true = total()
    error = (sums.double() - true).abs()
    if not bool((error <= number[:, None] * proof.ROUNDING * sizes(true)).all()):
        return Verdict(f"a sum is off by {float(error.max()):.3g}")
    return Verdict(facts={"rows_by_gap_rule": swapped})
