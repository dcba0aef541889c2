"""A plan as a picture: which clusters meet in each step, and how hard its problems are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from saerl_fast.report.drawing import MUTED, SERIES, Picture, picture
from saerl_fast.report.read import Plan, Run
from saerl_fast.report.wording import figure, plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PLANS, MOST_STEPS = 6, 500


def plans_view(run: Run) -> dict[str, Any] | None:
    """Every plan of the run, the first of MOST_PLANS drawn."""
    if not run.plans:
        return None
    return {"plans": [_view(plan) for plan in run.plans[:MOST_PLANS]], "more": [p.name for p in run.plans[MOST_PLANS:]]}


def _view(found: Plan) -> dict[str, Any]:
    summary = found.plan.summary()
    return {
        "name": found.name,
        "summary": summary,
        "left_out": summary["left_out"],
        "picture": plan_picture(found),
        "filtered": None if found.signals is None else found.signals["filtered"],
        "difficulty": found.plan.difficulty is not None,
    }


def plan_picture(found: Plan) -> Picture:
    """Upper panel: the share of each cluster in each step. Lower panel: predicted difficulty, median and quartiles."""
    plan = found.plan
    codes, width = plan.codes[plan.rows], len(plan.cluster_labels)
    shares = np.stack([(codes == code).mean(axis=1) for code in range(width)])
    met = float((shares > 0).sum(axis=0).mean())
    hard = None if plan.difficulty is None else np.percentile(plan.difficulty[plan.rows], [25, 50, 75], axis=1)
    folded = -(-plan.steps // MOST_STEPS)
    if folded > 1:
        shares = _fold(shares, folded)
        hard = None if hard is None else _fold(hard, folded)
    at = np.arange(shares.shape[1]) * folded + (folded + 1) / 2

    def draw(canvas: Figure, wide: bool) -> None:
        panels = canvas.subplots(
            1 if hard is None else 2, 1, sharex=True, squeeze=False, height_ratios=[3, 2][: 1 if hard is None else 2]
        )
        upper = panels[0, 0]
        # opacity alone tells the share, so that the page's own paper shows through
        shade = np.full((*shares.shape, 4), (0.30, 0.53, 0.86, 0.0))
        shade[..., 3] = shares / max(float(shares.max()), 1e-9)
        extent = (0.5, shares.shape[1] * folded + 0.5, width - 0.5, -0.5)
        upper.imshow(shade, aspect="auto", interpolation="none", extent=extent)
        upper.set_yticks(
            range(width), labels=[f"{label!s:.10}" for label in plan.cluster_labels] if width <= 16 else [""] * width
        )
        upper.set(ylabel="cluster")
        upper.grid(visible=False)
        upper.tick_params(length=0)
        if hard is not None:
            lower = panels[1, 0]
            lower.fill_between(at, hard[0], hard[2], color=SERIES[1], alpha=0.25, lw=0)
            lower.plot(at, hard[1], color=SERIES[1], lw=1.3)
            lower.set(ylabel="difficulty")
            lower.tick_params(length=0)
        for epoch in range(1, plan.epochs):
            for axes in panels.flat:
                axes.axvline(epoch * plan.steps_per_epoch + 0.5, color=MUTED, lw=0.8, ls=(0, (2, 2)))
        panels[-1, 0].set(xlabel="step", xlim=(0.5, plan.steps + 0.5))

    label = f"Plan {found.name}: {plural(plan.steps, 'step')}, "
    label += f"on average {figure(met, 1)} of {width} clusters in a step"
    if hard is not None:
        label += (
            f"; median predicted difficulty {figure(hard[1, 0])} in the first step, {figure(hard[1, -1])} in the last"
        )
    tall = 60 + min(14 * width, 200)
    return picture(draw, label + ".", tall + (0 if hard is None else 110), tall + (0 if hard is None else 100))


def _fold(values: Any, width: int) -> Any:
    """Means of so many steps next to each other, so that a long plan stays a small picture."""
    starts = np.arange(0, values.shape[1], width)
    counts = np.diff([*starts, values.shape[1]])
    return np.add.reduceat(values, starts, axis=1) / counts
