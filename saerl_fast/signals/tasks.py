"""One column of labels as a task: which rows have one, which are held out, how predictions are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from saerl_fast.errors import InputError
from saerl_fast.signals.held_out import area_under_curve, spearman
from saerl_fast.signals.inputs import is_missing, numeric_labels, one_column, refuse_useless

Metric = Literal["accuracy", "spearman", "auc"]


@dataclass(frozen=True)
class Task:
    """labels [S] (anything where there is none): words for accuracy, float64 for spearman, 0 or 1 for auc.

    train, tested: row numbers, ascending, of the rows that have a label.
    """

    name: str
    metric: Metric
    labels: NDArray[Any]
    train: NDArray[np.int64]
    tested: NDArray[np.int64]

    @property
    def train_labels(self) -> NDArray[Any]:
        return self.labels[self.train]

    def score(self, predicted: NDArray[Any]) -> float:
        """Of predictions for the tested rows."""
        true = self.labels[self.tested]
        if self.metric == "accuracy":
            return float((predicted == true).mean())
        return area_under_curve(predicted, true == 1) if self.metric == "auc" else spearman(predicted, true)

    def guess(self) -> float:
        """The score of a guess that knows only the training labels: the commonest topic, or a constant."""
        if self.metric != "accuracy":
            return 0.5 if self.metric == "auc" else 0.0
        names, counts = np.unique(self.train_labels, return_counts=True)
        return self.score(np.full(len(self.tested), names[counts.argmax()]))

    def describe(self, score: float) -> dict[str, Any]:
        """Counts, and the standard error of a score of this size."""
        labelled = len(self.train) + len(self.tested)
        return {
            "metric": self.metric,
            "labelled": labelled,
            "unlabelled": len(self.labels) - labelled,
            "train": len(self.train),
            "tested": len(self.tested),
            "standard_error": round(self._standard_error(score), 4),
        }

    def _standard_error(self, score: float) -> float:
        true = self.labels[self.tested]
        if self.metric == "accuracy":
            return float(np.sqrt(score * (1 - score) / len(true)))
        if self.metric == "spearman":
            return float((1 - score * score) / np.sqrt(max(len(true) - 1, 1)))
        # Hanley and McNeil, 1982
        good, bad = max(int(true.sum()), 1), max(int((1 - true).sum()), 1)
        both = score / (2 - score) - score**2, 2 * score**2 / (1 + score) - score**2
        return float(np.sqrt((score * (1 - score) + (good - 1) * both[0] + (bad - 1) * both[1]) / (good * bad)))


def make_task(name: str, labels: Sequence[Any], n_rows: int, held_out: NDArray[np.int64]) -> Task:
    """The task that a column of labels stands for; rows without a label take no part.

    Raises ShapeError (wrong length), InputError (too few labels, all equal, a topic that is no category),
    DtypeError (a difficulty that is not a number).
    """
    title = f"evaluate: {name}"
    column = one_column(labels, n_rows, title)
    missing = np.array([is_missing(label) for label in column.tolist()], dtype=bool)
    metric: Metric = "accuracy" if name == "topic" else "spearman"
    if name == "quality" and len(set(column[~missing].tolist())) == 2:
        metric = "auc"
    if metric == "spearman":
        values, known = numeric_labels(column, n_rows, title)
    else:
        values, known = np.array([str(label) for label in column.tolist()]), ~missing
        refuse_useless(values[known], n_rows, title)
    if metric == "auc":
        values = (values == max(values[known])).astype(np.float64)
    held = np.isin(np.arange(n_rows), held_out)
    task = Task(name, metric, values, np.flatnonzero(known & ~held), np.flatnonzero(known & held))
    _refuse_unusable(task)
    return task


def _refuse_unusable(task: Task) -> None:
    if len(task.tested) == 0 or len(np.unique(task.train_labels)) < 2:
        raise InputError(
            f"evaluate: {task.name} must have labels among the held-out rows and two different ones among the "
            f"others; got {len(task.tested)} held-out and {len(task.train)} training labels. Label more rows"
        )
    kinds = len(np.unique(task.train_labels))
    if task.metric == "accuracy" and kinds > len(task.train) / 2:
        raise InputError(
            f"evaluate: topic must be a column of categories; got {kinds} different values in "
            f"{len(task.train)} training rows. Choose another column"
        )
