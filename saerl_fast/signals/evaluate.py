"""How well SAE features tell topic, difficulty and quality, beside the controls they have to beat."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from saerl_fast.errors import InputError, NonFiniteError, ShapeError
from saerl_fast.signals.calibration import calibration
from saerl_fast.signals.controls import representations
from saerl_fast.signals.elastic_net import choose_penalty, fit_elastic_net
from saerl_fast.signals.evaluate_table import format_table
from saerl_fast.signals.held_out import area_under_curve, spearman
from saerl_fast.signals.inputs import canonical
from saerl_fast.signals.kmeans import StreamingKMeans
from saerl_fast.signals.linear import Rows, fit_logistic, fit_ridge
from saerl_fast.signals.scaling import transform_rows
from saerl_fast.signals.tasks import Task, make_task

__all__ = ["evaluate", "format_table", "held_out_rows"]

logger = logging.getLogger(__name__)

HELD_OUT = 2000
HELD_OUT_SHARE = 0.27
"""Of fewer than 7,408 rows, this share is held out."""
ELASTIC_FEATURES = 2000
ELASTIC_ALPHAS = 20
ELASTIC_RATIOS = (0.02, 0.1, 0.5, 0.9)
CLUSTERS = 16


def evaluate(
    features: Any,
    *,
    hidden: NDArray[Any] | None = None,
    texts: Sequence[str | None] | None = None,
    lengths: Sequence[int] | NDArray[Any] | None = None,
    topic: Sequence[Any] | None = None,
    difficulty: Sequence[Any] | None = None,
    quality: Sequence[Any] | None = None,
    held_out: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Probe SAE features and their controls on the same rows, with the same search for a penalty.

    features CSR [S, M], pooled and untransformed; hidden [S, D]; texts S strings (None reads as empty);
    lengths S token counts. Labels, one per row, None or NaN or "" where unknown: topic (categories: accuracy
    of a logistic regression), difficulty (numbers: Spearman of ridge, and of an elastic net as
    "sae_elasticnet"), quality (two values: area under the ROC curve, else Spearman; of ridge).
    held_out: rows held out (default 2,000, or 27 % of fewer than 7,408), drawn by `seed` from all rows: the
    same for every kind of feature and every label. Penalties are chosen on the training part alone.

    -> {"rows": S, "topic": {"sae": x, "raw": x, "tfidf": x, "tfidf_latex": x, "length": x, "majority": x},
    "difficulty": {...}, "quality": {...}, "topic_nmi": {...}, "details": {...}}. A kind without input has no
    entry, nor has a label that was not given. "topic_nmi": normalised mutual information of 16 k-means
    clusters with the topic. "details": seed, held_out, and for each label metric, labelled, unlabelled,
    train, tested, standard_error, penalty, seconds; for difficulty also "calibration": per kind of feature the
    held-out rows in about 10 bins (see ``signals.calibration``). Everything in it can be written as JSON.

    Raises ShapeError (a wrong length), InputError (labels all equal, too few), DtypeError (difficulty that is
    not a number), NonFiniteError.
    """
    rows = _checked(features, hidden=hidden, texts=texts, lengths=lengths)
    n_rows = rows.shape[0]
    given = {"topic": topic, "difficulty": difficulty, "quality": quality}
    test = held_out_rows(n_rows, seed, held_out)
    tasks = [make_task(name, labels, n_rows, test) for name, labels in given.items() if labels is not None]
    train = np.setdiff1d(np.arange(n_rows), test)
    words = None if texts is None else [text if isinstance(text, str) else "" for text in texts]
    kinds = representations(rows, train, hidden=hidden, texts=words, lengths=lengths)
    result: dict[str, Any] = {"rows": n_rows}
    details: dict[str, Any] = {"seed": seed, "held_out": len(test)}
    for task in tasks:
        result[task.name], details[task.name] = _compare(task, kinds, rows, seed)
        if task.name == "topic":
            result["topic_nmi"] = _mutual_information(task, kinds, rows, seed)
    return result | {"details": details}


def held_out_rows(n_rows: int, seed: int, held_out: int | None = None) -> NDArray[np.int64]:
    """Which rows are held out, ascending: drawn without replacement by the seed."""
    wanted = min(HELD_OUT, round(HELD_OUT_SHARE * n_rows)) if held_out is None else held_out
    if not 0 < wanted < n_rows:
        raise InputError(f"evaluate: held_out must be from 1 to the number of rows - 1; got {wanted} of {n_rows}")
    return np.sort(np.random.default_rng(seed).permutation(n_rows)[:wanted]).astype(np.int64)


def _compare(
    task: Task, kinds: Mapping[str, Rows], rows: sparse.csr_array, seed: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """The scores of every kind of feature on one label, and the details of how they came about."""
    scores: dict[str, float] = {}
    penalties: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    bins: dict[str, Any] = {}
    for kind in [*kinds, "sae_elasticnet"]:
        if kind == "sae_elasticnet" and task.name != "difficulty":
            continue
        began = time.perf_counter()
        if kind == "sae_elasticnet":
            predicted, penalties[kind] = _elastic_net(task, rows, seed)
        else:
            predicted, penalties[kind] = _probe(task, kinds[kind], seed)
        scores[kind] = task.score(predicted)
        seconds[kind] = round(time.perf_counter() - began, 2)
        if task.name == "difficulty":
            bins[kind] = calibration(predicted, task.labels[task.tested])
        logger.info("%s, %s: %s %.3f in %.1f s", task.name, kind, task.metric, scores[kind], seconds[kind])
    scores["majority"] = task.guess()
    details = task.describe(scores["sae"]) | {"penalty": penalties, "seconds": seconds}
    return scores, details | ({"calibration": bins} if bins else {})


def _probe(task: Task, rows: Rows, seed: int) -> tuple[NDArray[Any], float]:
    """Predictions for the held-out rows, and penalty, of a linear model on one kind of feature."""
    if task.metric == "accuracy":
        classifier, penalty = fit_logistic(rows[task.train], task.train_labels, seed=seed)
        return classifier.predict(rows[task.tested]), penalty
    inner = spearman if task.metric == "spearman" else lambda found, true: area_under_curve(found, true == 1)
    model = fit_ridge(rows[task.train], task.train_labels, inner, seed=seed)
    return model.predict(rows[task.tested]), model.penalty


def _elastic_net(task: Task, rows: sparse.csr_array, seed: int) -> tuple[NDArray[Any], dict[str, float]]:
    """Predictions for the held-out rows of the model of DifficultyProxy, and its penalties."""
    evened = transform_rows(rows, "sqrt")
    train = evened[task.train]
    penalty = choose_penalty(
        train,
        task.train_labels,
        max_features=ELASTIC_FEATURES,
        n_alphas=ELASTIC_ALPHAS,
        l1_ratios=ELASTIC_RATIOS,
        seed=seed,
    )
    model = fit_elastic_net(train, task.train_labels, penalty, ELASTIC_FEATURES)
    return model.predict(evened[task.tested]), {"alpha": penalty.alpha, "l1_ratio": penalty.l1_ratio}


def _mutual_information(task: Task, kinds: Mapping[str, Rows], rows: sparse.csr_array, seed: int) -> dict[str, float]:
    """Normalised mutual information of the topic with clusters of each kind, over all rows with a topic."""
    from sklearn.metrics import normalized_mutual_info_score

    known = np.sort(np.concatenate([task.train, task.tested]))
    found: dict[str, float] = {}
    for kind, matrix in [("sae", rows), *((kind, kinds[kind]) for kind in ("raw", "tfidf") if kind in kinds)]:
        how = "sqrt" if kind == "sae" else "none"
        try:
            model = StreamingKMeans(CLUSTERS, value_transform=how, tol=1e-4, random_state=seed).fit(matrix)
        except InputError as error:
            logger.info("no clusters of %s: %s", kind, error)
            continue
        found[kind] = float(normalized_mutual_info_score(task.labels[known], model.labels_[known]))
    return found


def _checked(features: Any, **others: Any) -> sparse.csr_array:
    """Features as canonical float32 CSR; every other input must have as many rows."""
    if not sparse.issparse(features) and np.ndim(features) != 2:
        raise ShapeError(f"evaluate: features must be [S, M], sparse or dense; got {np.shape(features)}")
    rows = canonical(features).astype(np.float32)
    for name, given in others.items():
        length = rows.shape[0] if given is None else np.shape(given)[0] if np.ndim(given) else 0
        if length != rows.shape[0]:
            raise ShapeError(f"evaluate: {name} must have one entry per row, {rows.shape[0]}; got {length}")
    if not np.isfinite(rows.data).all():
        raise NonFiniteError("evaluate: features hold NaN or infinity; leave those rows out")
    hidden = others.get("hidden")
    if hidden is not None and not (np.ndim(hidden) == 2 and np.isfinite(hidden).all()):
        raise NonFiniteError("evaluate: hidden must be [S, D] and finite; leave rows with NaN or infinity out")
    return rows
