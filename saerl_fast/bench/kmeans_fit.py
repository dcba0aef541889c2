"""A whole k-means fit: on projected rows, and from the features themselves by way of the projection.

Both sides minimise the same inertia, of rows of length 1. Equal quality, in the space of the projected rows, with the
means over SEEDS seeds: (I1 - I) / (I1 - I_sklearn) >= LEAST_QUALITY, where I1 is the inertia of one cluster and
I_sklearn that of scikit-learn's KMeans. Each call takes the next seed, so that times are those of many starts.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from saerl_fast.bench.contest import Call, Contest, Verdict
from saerl_fast.bench.data import pooled_rows
from saerl_fast.bench.encode import backend_of
from saerl_fast.signals import FeatureProjection, StreamingKMeans

SEEDS = 10
LEAST_QUALITY = 0.99
ROUNDING = 1e-5
"""Relative difference that float32 distances may make in a sum of them."""

Rows = NDArray[np.float32]


class Fitted(NamedTuple):
    """labels int32 [S], centroids [K, r], inertia [] and the rows [S, r] that they belong to."""

    labels: Tensor
    centroids: Tensor
    inertia: Tensor
    rows: Tensor


def kmeans_fit(clusters: int, components: int, **where: Any) -> Contest:
    """StreamingKMeans against scikit-learn's KMeans and MiniBatchKMeans on the same projected rows.

    where: rows, latents and density of made-up rows, or features, a folder of real ones.
    """
    rows = projected(features_of(**where), components)
    return Contest(
        ours=each_seed(lambda seed: fitted(rows, clusters, seed)),
        baselines={name: theirs(name, rows, clusters) for name in ("KMeans", "MiniBatchKMeans")},
        prove=lambda found: judged(found, rows, clusters),
        backend=f"{backend_of('kmeans_assign')}, {backend_of('kmeans_update')}",
    )


def kmeans_fit_full(clusters: int, components: int, **where: Any) -> Contest:
    """Projection and k-means, both fitted, against scikit-learn's KMeans and MiniBatchKMeans on the full rows."""
    from sklearn.preprocessing import normalize

    features = features_of(**where)
    rows = projected(features, components)
    full = normalize(features.sqrt())
    dense = full.toarray()
    return Contest(
        ours=each_seed(lambda seed: fitted(projected(features, components), clusters, seed)),
        baselines={
            "KMeans on dense": theirs("KMeans", dense, clusters),
            "MiniBatchKMeans on dense": theirs("MiniBatchKMeans", dense, clusters),
            "MiniBatchKMeans on CSR": theirs("MiniBatchKMeans", full, clusters),
        },
        prove=lambda found: judged_in_full(found, rows, clusters, features),
        backend=f"{backend_of('project')}, {backend_of('kmeans_assign')}, {backend_of('kmeans_update')}",
        facts={"mean_density": features.nnz / (features.shape[0] * features.shape[1])},
    )


def features_of(*, rows: int = 0, latents: int = 0, density: float = 0.0, features: str | None = None) -> Any:
    """Features as a scipy CSR matrix: planted topics with Zipf frequencies, or those of a folder."""
    from scipy import sparse

    if features is not None:
        from saerl_fast.extract.store import load_features

        found = load_features(features)
        return sparse.csr_matrix(found.to_scipy()[found.usable])
    csr = pooled_rows(rows, latents, density)
    indptr, indices, values = (part.numpy() for part in csr)
    return sparse.csr_matrix((values, indices, indptr), shape=(rows, latents))


def projected(features: Any, components: int, **how: Any) -> Rows:
    """Projected rows of length 1, as k-means on directions wants them. how: parameters of FeatureProjection."""
    from sklearn.preprocessing import normalize

    rows: Rows = normalize(FeatureProjection(components, random_state=0, **how).fit_transform(features))
    return rows


def fitted(rows: Rows, clusters: int, seed: int) -> Fitted:
    found = StreamingKMeans(clusters, metric="euclidean", random_state=seed).fit(rows)
    arrays = (found.labels_, found.cluster_centers_, np.float64(found.inertia_), rows)
    return Fitted(*(torch.as_tensor(array) for array in arrays))


def theirs(name: str, rows: Any, clusters: int) -> Call:
    """scikit-learn's estimator of this name with its own settings, on as many threads as ours."""
    return each_seed(lambda seed: fitted_by_sklearn(name, rows, clusters, seed))


def fitted_by_sklearn(name: str, rows: Any, clusters: int, seed: int) -> NDArray[np.int32]:
    from sklearn import cluster
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(torch.get_num_threads()):
        labels: NDArray[np.int32] = getattr(cluster, name)(clusters, random_state=seed).fit(rows).labels_
    return labels


def each_seed(fit: Callable[[int], Any]) -> Call:
    """A call that takes the next of SEEDS seeds each time."""
    seeds = cycle(range(SEEDS))
    return lambda: fit(next(seeds))


def judged(found: Fitted, rows: Rows, clusters: int) -> Verdict:
    """The result is what it says it is, in float64, and as good as scikit-learn's."""
    if not np.array_equal(found.rows.numpy(), rows):
        return Verdict("the projected rows are not those of the same projection made before")
    far = torch.cdist(torch.from_numpy(rows).double(), found.centroids.double()).square()
    own = far.gather(1, found.labels.long()[:, None])[:, 0]
    if wrong := int((own > far.min(dim=1).values + ROUNDING).sum()):
        return Verdict(f"{wrong} rows are not with their nearest centroid")
    if abs(float(own.sum()) - float(found.inertia)) > ROUNDING * float(own.sum()):
        return Verdict(f"the inertia is {float(own.sum()):.8g}, not {float(found.inertia):.8g}")
    one = inertia(rows, np.zeros(len(rows), dtype=np.int32))
    ours = np.mean([inertia(rows, fitted(rows, clusters, seed).labels.numpy()) for seed in range(SEEDS)])
    reference = np.mean([inertia(rows, fitted_by_sklearn("KMeans", rows, clusters, seed)) for seed in range(SEEDS)])
    quality = float((one - ours) / (one - reference))
    if quality < LEAST_QUALITY:
        return Verdict(f"the quality is {quality:.4f}, below {LEAST_QUALITY}")
    return Verdict(facts={"quality": round(quality, 4)})


def judged_in_full(found: Fitted, rows: Rows, clusters: int, features: Any) -> Verdict:
    """Besides, the clusters are as good as those of directions learnt from all rows.

    Judged in the space of the latter: a projection that loses topics makes it easy to do well in its own.
    """
    verdict = judged(found, rows, clusters)
    if verdict.failure:
        return verdict
    whole = projected(features, rows.shape[1], max_rows=len(rows))
    one = inertia(whole, np.zeros(len(whole), dtype=np.int32))
    ours, theirs = (
        np.mean([inertia(whole, fitted(space, clusters, seed).labels.numpy()) for seed in range(SEEDS)])
        for space in (rows, whole)
    )
    quality = float((one - ours) / (one - theirs))
    if quality < LEAST_QUALITY:
        return Verdict(f"the quality in the space of all rows is {quality:.4f}, below {LEAST_QUALITY}")
    return Verdict(facts={**verdict.facts, "quality_of_sample": round(quality, 4)})


def inertia(rows: Rows, labels: NDArray[np.int32]) -> float:
    """The sum of the squared distances to the means of the labels' clusters, in float64."""
    wide, total = rows.astype(np.float64), 0.0
    for label in np.unique(labels):
        members = wide[labels == label]
        total += float(np.square(members - members.mean(axis=0)).sum())
    return total
