"""Difficulty: predicted against observed on held-out rows, beside controls; the labels; the truth where it is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saerl_fast.report.drawing import INK, MUTED, SERIES, Picture, half_picture, horizontal_grid, picture
from saerl_fast.report.read import Labels, Run
from saerl_fast.report.wording import figure, whole
from saerl_fast.rl.label import difficulty_column
from saerl_fast.signals.evaluate_table import KINDS
from saerl_fast.signals.held_out import spearman

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHORT = {
    "sae_elasticnet": "SAE, elastic net",
    "sae": "SAE, ridge",
    "raw": "raw hidden states",
    "tfidf": "TF-IDF",
    "tfidf_latex": "TF-IDF, LaTeX",
    "length": "length",
}
"""Titles of the panels, the model of the plan's proxy first."""
FEWEST_LEVEL_ROWS, MOST_BARS = 2, 16


def difficulty_view(run: Run) -> dict[str, Any] | None:
    """None where neither labels nor scores nor predictions are there."""
    bins = ((run.evaluation or {}).get("details", {}).get("difficulty") or {}).get("calibration")
    labels = None if run.labels is None else labels_view(run.labels)
    levels = levels_view(run)
    proxy = run.plan.signals["held_out"].get("difficulty") if run.plan and run.plan.signals else None
    scored = "difficulty" in (run.evaluation or {})
    if not (bins or labels or levels or proxy or scored):
        return None
    return {
        "calibration": calibration_picture(bins) if bins else None,
        "scored": scored,
        "labels": labels,
        "levels": levels,
        "hidden": hidden_view(run.evaluation or {}),
        "proxy": proxy,
        "labelled": (run.plan.signals or {}).get("labelled", {}).get("difficulty") if run.plan else None,
        "plan": run.plan.name if run.plan else None,
    }


def calibration_picture(bins: Mapping[str, Any]) -> Picture:
    """One panel per kind of feature on the same axes: bins of predictions, the diagonal, two standard errors."""
    kinds = [kind for kind in SHORT if kind in bins]
    across = _limits([value for kind in kinds for value in bins[kind]["predicted"]])
    up = _limits([mean + side * error for kind in kinds for mean, error in _observed(bins[kind]) for side in (-1, 1)])

    def draw(canvas: Figure, wide: bool) -> None:
        columns = min(len(kinds), 6 if wide else 2)
        panels = canvas.subplots(-(-len(kinds) // columns), columns, squeeze=False, sharex=True, sharey=True)
        for number, axes in enumerate(panels.flat):
            if number >= len(kinds):
                axes.set_axis_off()
                continue
            _panel(axes, kinds[number], bins[kinds[number]], across, up)
        canvas.supxlabel("mean predicted", fontsize=12, color=MUTED)
        canvas.supylabel("mean observed", fontsize=12, color=MUTED)

    spans = [f"{KINDS[kind]} observed {_span(bins[kind])}" for kind in kinds]
    label = f"Mean observed against mean predicted difficulty in bins of held-out rows. {'; '.join(spans)}."
    rows = -(-len(kinds) // 2)
    return picture(draw, label, 250, 90 + 150 * rows)


def _panel(
    axes: Axes, kind: str, found: Mapping[str, Any], across: tuple[float, float], up: tuple[float, float]
) -> None:
    ours = kind.startswith("sae")
    colour = SERIES[0] if ours else SERIES[5]
    means, errors = zip(*_observed(found), strict=True)
    axes.plot(across, across, color=MUTED, lw=0.8, ls=(0, (3, 3)))
    axes.errorbar(found["predicted"], means, yerr=errors, fmt="none", ecolor=colour, elinewidth=1, alpha=0.55)
    axes.plot(found["predicted"], means, color=colour, marker="o", ms=3.5, lw=1.2)
    axes.set(xlim=across, ylim=up)
    axes.set_title(SHORT[kind], fontsize=11.5, color=INK if ours else MUTED)
    axes.tick_params(length=0)
    axes.locator_params(nbins=4)


def _observed(found: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Mean observed and two standard errors, bin by bin."""
    errors = found.get("standard_error") or [None] * len(found["n"])
    return [(mean, 2 * (error or 0.0)) for mean, error in zip(found["observed"], errors, strict=True)]


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Ends of an axis, with a little room."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


def _span(found: Mapping[str, Any]) -> str:
    return f"from {figure(found['observed'][0])} in the lowest bin to {figure(found['observed'][-1])} in the highest"


def labels_view(labels: Labels) -> dict[str, Any] | None:
    """How often the policy solved the labelled problems; None while they are unfinished."""
    if not labels.labels:
        return None
    rates = np.array([found.pass_rate for found in labels.labels])
    job = labels.manifest["fingerprint"]
    # as many bars as there are rates to have, where they are few: ten would leave holes
    rollouts = {found.rollouts for found in labels.labels}
    parts = max(rollouts) if len(rollouts) == 1 and max(rollouts) <= MOST_BARS else 10
    counts = np.bincount(np.rint(rates * parts).astype(int), minlength=parts + 1)

    def draw(canvas: Figure, wide: bool) -> None:
        axes = canvas.subplots()
        axes.bar(np.arange(parts + 1) / parts, counts, width=0.86 / parts, color=SERIES[0])
        axes.set(xlabel="pass rate", ylabel="problems")
        horizontal_grid(axes)

    return {
        "rows": len(rates),
        "rollouts": job.get("rollouts"),
        "temperature": job.get("temperature"),
        "mean": float(rates.mean()),
        "none": float((rates == 0).mean()),
        "all": float((rates == 1).mean()),
        "left_out": labels.manifest.get("left_out") or {},
        "picture": half_picture(
            draw, f"Problems by pass rate, from 0 to 1 in {parts} parts: " + ", ".join(map(whole, counts))
        ),
    }


def levels_view(run: Run) -> dict[str, Any] | None:
    """Predicted difficulty by true level, over the rows whose label the proxy never had."""
    if run.matched is None or run.matched[0].level is None or run.matched[1].plan.difficulty is None:
        return None
    features, plan = run.matched
    level, predicted = run.matched[0].level, run.matched[1].plan.difficulty
    seen = _labelled_rows(run, len(level))
    used = features.rows.usable & np.isfinite(level) & ~seen
    levels = [float(value) for value in np.unique(level[used]) if (level[used] == value).sum() >= FEWEST_LEVEL_ROWS]
    if len(levels) < 2 or len(levels) > 20:
        return None
    groups = [predicted[used & (level == value)] for value in levels]
    quartiles = np.array([np.percentile(group, [25, 50, 75]) for group in groups])

    def draw(canvas: Figure, wide: bool) -> None:
        axes = canvas.subplots()
        axes.vlines(levels, quartiles[:, 0], quartiles[:, 2], color=SERIES[0], lw=7, alpha=0.35)
        axes.plot(levels, quartiles[:, 1], color=SERIES[0], marker="o", ms=5, lw=1.2)
        axes.set(xlabel="true level", ylabel="predicted difficulty")
        axes.set_xticks(levels, labels=[f"{value:g}" for value in levels])
        horizontal_grid(axes)

    medians = ", ".join(
        f"level {value:g}: {figure(middle)}" for value, middle in zip(levels, quartiles[:, 1], strict=True)
    )
    found = spearman(predicted[used], level[used])
    return {
        "plan": plan.name,
        "rows": int(used.sum()),
        "unseen": bool(seen.any()),
        "spearman": found,
        "error": float((1 - found**2) / np.sqrt(max(int(used.sum()) - 1, 1))),
        "observed": _observed_by_level(run, level),
        "lengths": spearman(features.rows.n_tokens[used].astype(float), level[used]),
        "picture": half_picture(draw, f"Median predicted difficulty by true level. {medians}."),
    }


def hidden_view(evaluation: Mapping[str, Any]) -> dict[str, Any] | None:
    """How well each kind of feature tells the true level when fitted to it; None where nobody has asked."""
    if "level" not in evaluation:
        return None
    scores, details = evaluation["level"], evaluation["details"]["level"]
    return {
        "scores": [
            {"name": KINDS[kind], "score": scores[kind]} for kind in KINDS if kind in scores and kind != "majority"
        ],
        "train": details["labelled"] - details["tested"],
        "tested": details["tested"],
        # of a guess, whose Spearman is 0
        "error": float(1 / np.sqrt(max(details["tested"] - 1, 1))),
    }


def _labelled_rows(run: Run, rows: int) -> NDArray[np.bool_]:
    """Which rows `saerl label` has labelled, so that the proxy may have been fitted on them."""
    seen = np.zeros(rows, dtype=bool)
    if run.features is not None and run.labels is not None and run.labels.labels:
        known = {found.id for found in run.labels.labels}
        seen[:] = [row_id in known for row_id in run.features.rows.ids]
    return seen


def _observed_by_level(run: Run, level: NDArray[np.float64]) -> float | None:
    """Spearman of the labels themselves with the level: how far the policy finds hard what is meant to be."""
    if run.features is None or run.labels is None or not run.labels.labels:
        return None
    known = difficulty_column(run.labels.labels, run.features.rows.ids)
    pairs = [(hard, step) for hard, step in zip(known, level, strict=True) if hard is not None and np.isfinite(step)]
    return spearman(*map(np.array, zip(*pairs, strict=True))) if len(pairs) > 1 else None
