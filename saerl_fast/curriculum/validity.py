"""The invariants of a plan, checked when one is made and when one is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from saerl_fast.errors import PlanError

if TYPE_CHECKING:
    from saerl_fast.curriculum.plan import BatchPlan


def check_plan(plan: BatchPlan) -> None:
    """Raises PlanError unless the plan is what its docstring says."""
    _check_shapes(plan)
    _check_ranges(plan)
    kept = plan.reasons == 0
    _check_values(plan)
    per_epoch = plan.rows.shape[0] // plan.dropped.shape[0]
    for epoch in range(plan.dropped.shape[0]):
        steps = slice(epoch * per_epoch, (epoch + 1) * per_epoch)
        rows, padded = plan.rows[steps], plan.padded[steps]
        times = np.bincount(rows[~padded], minlength=len(plan.ids))
        times += np.bincount(plan.dropped[epoch], minlength=len(plan.ids))
        wrong = np.flatnonzero(times != kept)
        if len(wrong):
            row = int(wrong[0])
            raise PlanError(
                f"epoch {epoch}: wanted each kept row once; row {row} ({plan.reason_names[plan.reasons[row]]}) "
                f"occurs {times[row]} times, and {len(wrong) - 1} more rows are wrong"
            )
        if not kept[rows[padded]].all():
            raise PlanError(f"epoch {epoch}: a row that was left out fills up the last batch")
        if int(padded.sum()) >= plan.rows.shape[1]:
            raise PlanError(f"epoch {epoch}: {int(padded.sum())} repeats are a whole batch or more")


def _check_shapes(plan: BatchPlan) -> None:
    if plan.rows.ndim != 2 or plan.rows.size == 0:
        raise PlanError(f"rows: wanted [steps, prompts], got shape {plan.rows.shape}")
    if plan.padded.shape != plan.rows.shape:
        raise PlanError(f"padded: wanted shape {plan.rows.shape}, got {plan.padded.shape}")
    if plan.dropped.ndim != 2 or plan.dropped.shape[0] < 1 or plan.rows.shape[0] % plan.dropped.shape[0]:
        raise PlanError(f"dropped: wanted [epochs, d], epochs a divisor of the steps; got {plan.dropped.shape}")
    count = len(plan.ids)
    for name in ("codes", "reasons", "difficulty", "quality"):
        array = getattr(plan, name)
        if array is not None and array.shape != (count,):
            raise PlanError(f"{name}: wanted one entry for each of {count} ids, got shape {array.shape}")


def _check_ranges(plan: BatchPlan) -> None:
    count = len(plan.ids)
    for name, array, least, end in (
        ("rows", plan.rows, 0, count),
        ("dropped", plan.dropped, 0, count),
        ("codes", plan.codes, -1, len(plan.cluster_labels)),
        ("reasons", plan.reasons, 0, len(plan.reason_names)),
    ):
        if array.size and not (array.min() >= least and array.max() < end):
            raise PlanError(f"{name}: wanted numbers from {least} to {end - 1}, got {array.min()} to {array.max()}")


def _check_values(plan: BatchPlan) -> None:
    kept = plan.reasons == 0
    if (plan.codes[kept] < 0).any():
        raise PlanError("codes: a kept row has no cluster")
    for name in ("difficulty", "quality"):
        array = getattr(plan, name)
        if array is not None and not np.isfinite(array[kept]).all():
            raise PlanError(f"{name}: a kept row has a value that is not finite")
    if len(set(plan.ids.tolist())) != len(plan.ids):
        raise PlanError("ids: wanted each id once, some are repeated")
