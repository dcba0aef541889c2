"""The table op x backend: which bodies exist."""

from __future__ import annotations

from saerl_fast.ops import reference
from saerl_fast.ops.choice import Implementation, Table


def _always(_: object) -> None:
    return None


TABLE: Table = {
    "topk_encode": {"reference": Implementation(reference.topk_encode, _always)},
    "threshold_encode": {"reference": Implementation(reference.threshold_encode, _always)},
    "decode": {"reference": Implementation(reference.decode, _always)},
    "project": {"reference": Implementation(reference.project, _always)},
    "segment_pool": {"reference": Implementation(reference.segment_pool, _always)},
    "kmeans_assign": {"reference": Implementation(reference.kmeans_assign, _always)},
    "kmeans_update": {"reference": Implementation(reference.kmeans_update, _always)},
}
