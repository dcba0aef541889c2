"""flash-kmeans (arXiv 2603.09229) as a baseline of dense k-means, where it is installed; proved before it is timed.

    labels = argmin_k |x - c_k|^2      in TF32: a label may be that of a centroid as near but for the rounding
    means  = of the rows of each label; a cluster without rows keeps its centroid

Its two Triton kernels are called as its own loop calls them, |x|^2 made beforehand: one iteration of a fit.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor

from saerl_fast.bench import proof
from saerl_fast.bench.contest import Call

TF32 = 2.0**-9
"""What TF32 may add to a product, as a share of |x| |c|: ten bits of each operand, cut off."""


def missing(device: torch.device) -> str | None:
    """Why it cannot run here, or None."""
    if device.type != "cuda":
        return "runs on CUDA only"
    try:
        _kernels()
    # its kernels may be made for another release of Triton
    except (ImportError, AttributeError, TypeError, RuntimeError) as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "flash_kmeans"
        return "not installed" if absent else f"cannot be imported: {error}"
    return None


def _kernels() -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    import_module("flash_kmeans")
    # the package itself puts plain torch in place of what does not import, in silence
    assign = import_module("flash_kmeans.assign_euclid_triton").euclid_assign_triton
    update = import_module("flash_kmeans.centroid_update_triton").triton_centroid_update_sorted_euclid
    return assign, update


def iteration(x: Tensor, centroids: Tensor) -> Call:
    """x [S, r], centroids [K, r] float32 -> a call that gives labels [S] and means [K, r]."""
    assign, update = _kernels()
    batch, centres, squares = x[None], centroids[None], x.square().sum(dim=1)[None]

    def once() -> tuple[Tensor, Tensor]:
        labels = assign(batch, centres, squares)
        return labels[0], update(batch, labels, centres)[0]

    return once


def wrong(result: tuple[Tensor, Tensor], x: Tensor, centroids: Tensor, chosen: Tensor) -> str | None:
    """What is wrong with the labels of the rows `chosen`, or with a mean; None where nothing is."""
    labels, means = result
    if labels.shape != (len(x),) or means.shape != centroids.shape:
        return (
            f"wanted {len(x)} labels and means {list(centroids.shape)}; got {list(labels.shape)}, {list(means.shape)}"
        )
    if not bool(((labels >= 0) & (labels < len(centroids))).all()):
        return "a label names no cluster"
    distance, slack = proof._distances(x[chosen].double(), centroids.double())
    nearest = distance.min(dim=1)
    at = labels[chosen].long()[:, None]
    allowed = (slack.gather(1, at) + slack.gather(1, nearest.indices[:, None]))[:, 0] * (1 + TF32 / proof.GAP)
    far = distance.gather(1, at)[:, 0] - nearest.values > allowed
    if bool(far.any()):
        return f"{int(far.sum())} of {len(chosen)} rows are not with their nearest centroid"
    number = torch.bincount(labels.long(), minlength=len(centroids))[:, None]

    def mean(rows: Tensor) -> Tensor:
        total = torch.zeros(centroids.shape, dtype=torch.float64, device=x.device)
        return total.index_add_(0, labels.long(), rows.double()) / number.clamp(min=1)

    true, size = mean(x), mean(x.abs())
    error = (means.double() - torch.where(number > 0, true, centroids.double())).abs()
    off = error > (number + 2) * proof.ROUNDING * size
    return f"a mean is off by {float(error[off].max()):.3g}" if bool(off.any()) else None
