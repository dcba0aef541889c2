"""Clusters: how large, by which features, with which problems, how hard; against the truth where it is known."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from saerl_fast.report.read import Features, Plan, Run
from saerl_fast.report.wording import without_middle
from saerl_fast.rl.label import difficulty_column

MOST_CLUSTERS, AT_ONCE, FEATURES, EXAMPLES, MOST_TOPICS = 64, 8, 5, 2, 12


def clusters_view(run: Run) -> dict[str, Any] | None:
    """One entry per cluster, the largest first; None without features and a plan of the same rows."""
    if run.matched is None:
        return None
    features, plan = run.matched
    codes, usable = plan.plan.codes, features.rows.usable & (plan.plan.codes >= 0)
    matrix = features.rows.to_scipy().astype(np.float64)
    spread = _moments(matrix[usable])
    observed = _observed(run, features)
    entries = []
    for code, label in enumerate(plan.plan.cluster_labels):
        inside = usable & (codes == code)
        if inside.any():
            described = _describe(inside, features, plan, observed)
            entries.append({"label": str(label)} | described | _contents(matrix, inside, spread, features, plan))
    entries.sort(key=lambda entry: -entry["rows"])
    return {
        "plan": plan.name,
        "shown": entries[:AT_ONCE],
        "folded": entries[AT_ONCE:MOST_CLUSTERS],
        "more": max(0, len(entries) - MOST_CLUSTERS),
        "count": len(entries),
        "largest": entries[0]["rows"],
        "smallest": entries[-1]["rows"],
        "texts": features.texts is not None,
        "why_no_texts": features.why_no_texts,
        "crossing": None if features.topic is None else _crossing(codes, usable, features.topic, plan),
        "observed": observed is not None,
        "predicted": plan.plan.difficulty is not None,
    }


def _moments(matrix: sparse.csr_matrix) -> tuple[int, NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Of all usable rows: how many, sum [M], standard deviation [M], rows in which each feature is active [M]."""
    count = matrix.shape[0]
    total = np.asarray(matrix.sum(axis=0), dtype=np.float64).ravel()
    squares = np.asarray(matrix.multiply(matrix).sum(axis=0)).ravel()
    deviation = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0))
    active = np.bincount(matrix.indices[matrix.data > 0], minlength=matrix.shape[1])
    return count, total, deviation, active


def _describe(
    inside: NDArray[np.bool_], features: Features, plan: Plan, observed: NDArray[np.float64] | None
) -> dict[str, Any]:
    """Size, difficulty and commonest topic of the rows of a cluster."""
    predicted = plan.plan.difficulty
    labelled = None if observed is None else observed[inside & np.isfinite(observed)]
    levels = None if features.level is None else features.level[inside & np.isfinite(features.level)]
    found: dict[str, Any] = {
        "rows": int(inside.sum()),
        "kept": int((inside & (plan.plan.reasons == 0)).sum()),
        "predicted": None if predicted is None else float(predicted[inside].mean()),
        "observed": None if labelled is None or not len(labelled) else float(labelled.mean()),
        "labelled": 0 if labelled is None else len(labelled),
        "level": None if levels is None or not len(levels) else float(levels.mean()),
        "topic": None,
    }
    if features.topic is not None:
        topic, count = Counter(features.topic[row] or "none" for row in np.flatnonzero(inside)).most_common(1)[0]
        found |= {"topic": topic, "topic_share": count / found["rows"]}
    return found


def _contents(
    matrix: sparse.csr_matrix,
    inside: NDArray[np.bool_],
    spread: tuple[int, NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]],
    features: Features,
    plan: Plan,
) -> dict[str, Any]:
    """The features that set the cluster apart, and the problems nearest to its centre."""
    count, total, deviation, active = spread
    rows = matrix[inside]
    within, others = rows.shape[0], max(1, count - rows.shape[0])
    mean = np.asarray(rows.sum(axis=0)).ravel() / within
    outside = (total - mean * within) / others
    with np.errstate(divide="ignore", invalid="ignore"):
        strength = np.where(deviation > 0, (mean - outside) / deviation, 0.0)
    fired = np.bincount(rows.indices[rows.data > 0], minlength=rows.shape[1])
    top = [number for number in np.argsort(-strength, kind="stable")[:FEATURES] if strength[number] > 0]
    listed = [
        {
            "feature": int(number),
            "strength": float(strength[number]),
            "inside": fired[number] / within,
            "outside": (active[number] - fired[number]) / others,
        }
        for number in top
    ]
    places = np.flatnonzero(inside)[_nearest(rows)]
    return {"features": listed, "examples": [_example(int(place), features, plan) for place in places]}


def _nearest(rows: sparse.csr_matrix) -> NDArray[np.int64]:
    """The rows nearest to the centre by cosine, on square roots, as the clusters are made."""
    roots = rows.copy()
    roots.data = np.sqrt(np.maximum(roots.data, 0))
    lengths = np.sqrt(np.asarray(roots.multiply(roots).sum(axis=1)).ravel())
    lengths[lengths == 0] = 1
    centre = np.asarray((sparse.diags_array(1 / lengths) @ roots).mean(axis=0)).ravel()
    return np.argsort(-(roots @ centre) / lengths, kind="stable")[:EXAMPLES]


def _example(place: int, features: Features, plan: Plan) -> dict[str, Any]:
    predicted = plan.plan.difficulty
    return {
        "id": str(features.rows.ids[place]),
        "text": None if features.texts is None else without_middle(features.texts[place]),
        "topic": None if features.topic is None else features.topic[place],
        "level": None if features.level is None else float(features.level[place]),
        "predicted": None if predicted is None else float(predicted[place]),
    }


def _observed(run: Run, features: Features) -> NDArray[np.float64] | None:
    """1 - pass rate by row, NaN where a row has no label."""
    if run.labels is None or not run.labels.labels:
        return None
    found = difficulty_column(run.labels.labels, features.rows.ids)
    return np.array([np.nan if value is None else value for value in found])


def _crossing(
    codes: NDArray[np.int32], usable: NDArray[np.bool_], topics: list[str | None], plan: Plan
) -> dict[str, Any] | None:
    """Cluster by topic: counts, the share of rows of their cluster's commonest topic, and NMI."""
    from sklearn.metrics import normalized_mutual_info_score

    known = np.array([row for row in np.flatnonzero(usable) if topics[row] is not None], dtype=np.int64)
    if not len(known):
        return None
    named = [str(topics[row]) for row in known]
    counts = Counter(named)
    shown = [name for name, _ in counts.most_common(MOST_TOPICS)]
    table: dict[int, Counter[str]] = {}
    for code, name in zip(codes[known].tolist(), named, strict=True):
        table.setdefault(code, Counter())[name] += 1
    order = sorted(
        table, key=lambda code: (shown.index(top) if (top := table[code].most_common(1)[0][0]) in shown else 99, code)
    )
    rows = []
    for code in order:
        size = table[code].total()
        cells = [{"count": table[code][name], "share": table[code][name] / size} for name in shown]
        rows.append({"label": str(plan.plan.cluster_labels[code]), "cells": cells, "size": size})
    return {
        "topics": shown,
        "left_out": len(counts) - len(shown),
        "rows": rows[:MOST_CLUSTERS],
        "purity": sum(found.most_common(1)[0][1] for found in table.values()) / len(known),
        "guess": counts.most_common(1)[0][1] / len(known),
        "nmi": float(normalized_mutual_info_score(named, codes[known])),
    }
