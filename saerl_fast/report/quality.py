"""Quality: what was predicted, where the threshold lies, what was dropped, and whether that was right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saerl_fast.curriculum.filtering import LOW_QUALITY
from saerl_fast.report.drawing import INK, SERIES, Picture, horizontal_grid, picture
from saerl_fast.report.read import Features, Plan, Run
from saerl_fast.report.wording import figure, percent, whole, without_middle
from saerl_fast.signals.held_out import area_under_curve

if TYPE_CHECKING:
    from matplotlib.figure import Figure


BINS, LOWEST = 40, 6


def quality_view(run: Run) -> dict[str, Any] | None:
    """None where nothing of quality was predicted, scored or filtered."""
    plan = run.plan
    scored = "quality" in (run.evaluation or {})
    report = plan.signals["held_out"].get("quality") if plan and plan.signals else None
    predicted = plan is not None and plan.plan.quality is not None
    if not (scored or report or predicted):
        return None
    found: dict[str, Any] = {
        "scored": scored,
        "report": report,
        "filtered": plan.signals["filtered"] if plan and plan.signals else None,
        "plan": plan.name if plan else None,
        "picture": None,
        "truth": None,
        "lowest": [],
    }
    if plan is None or not predicted:
        return found
    dropped = dropped_rows(plan)
    read = plan.plan.codes >= 0
    defect = run.matched[0].defect if run.matched is not None else None
    return found | {
        "threshold": plan.plan.threshold,
        "dropped": int(dropped.sum()),
        "rows": int(read.sum()),
        "picture": _histogram(plan, read, defect),
        "lowest": _lowest(run.matched[0], plan, read) if run.matched is not None else [],
        "truth": None if run.matched is None or defect is None else _truth(run.matched[0], plan, defect, dropped),
    }


def dropped_rows(plan: Plan) -> NDArray[np.bool_]:
    """Which rows the quality filter left out; bool [S]."""
    codes = [code for code, name in enumerate(plan.plan.reason_names) if name == LOW_QUALITY]
    return np.isin(plan.plan.reasons, codes)


def _lowest(features: Features, plan: Plan, read: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """The rows lowest in predicted quality: the first that a filter drops."""
    if features.texts is None:
        return []
    quality = np.asarray(plan.plan.quality)
    dropped = dropped_rows(plan)
    rows = np.flatnonzero(read)
    return [
        {
            "id": str(features.rows.ids[row]),
            "text": without_middle(features.texts[row]),
            "quality": float(quality[row]),
            "dropped": bool(dropped[row]),
            "faulty": None if features.defect is None else bool(features.defect[row]),
        }
        for row in rows[np.argsort(quality[rows], kind="stable")][:LOWEST].tolist()
    ]


def _truth(features: Features, plan: Plan, defect: NDArray[np.bool_], dropped: NDArray[np.bool_]) -> dict[str, Any]:
    """What was dropped, against what should have been, over the rows with features."""
    used = features.rows.usable & (plan.plan.codes >= 0)
    faulty, gone = defect[used], dropped[used]
    quality = np.asarray(plan.plan.quality)[used]
    hits = int((faulty & gone).sum())
    return {
        "rows": int(used.sum()),
        "faulty": int(faulty.sum()),
        "share": float(faulty.mean()) if len(faulty) else None,
        "hits": hits,
        "precision": hits / int(gone.sum()) if gone.any() else None,
        "recall": hits / int(faulty.sum()) if faulty.any() else None,
        "by_chance": float(faulty.mean() * gone.sum()) if len(faulty) else None,
        "auc": area_under_curve(-quality, faulty) if 0 < faulty.sum() < len(faulty) else None,
    }


def _histogram(plan: Plan, read: NDArray[np.bool_], defect: NDArray[np.bool_] | None) -> Picture:
    quality = np.asarray(plan.plan.quality)
    edges = np.histogram_bin_edges(quality[read], bins=BINS)
    middles, width = edges[:-1] + np.diff(edges) / 2, 0.9 * float(edges[1] - edges[0])
    sound = quality[read] if defect is None else quality[read & ~defect]
    faulty = np.empty(0) if defect is None else quality[read & defect]

    def draw(canvas: Figure, wide: bool) -> None:
        axes = canvas.subplots()
        below = np.histogram(sound, bins=edges)[0]
        axes.bar(middles, below, width=width, color=SERIES[0])
        if len(faulty):
            axes.bar(middles, np.histogram(faulty, bins=edges)[0], bottom=below, width=width, color=SERIES[1])
        if plan.plan.threshold is not None:
            axes.axvline(plan.plan.threshold, color=INK, lw=1.2, ls=(0, (4, 3)))
        axes.set(xlabel="predicted quality", ylabel="problems")
        horizontal_grid(axes)

    label = f"Histogram of predicted quality, mean {figure(quality[read].mean())}, of {whole(read.sum())} problems"
    if len(faulty):
        label += f"; sound ones mean {figure(sound.mean())}, defective ones {figure(faulty.mean())}"
    if plan.plan.threshold is not None:
        label += f"; the threshold {figure(plan.plan.threshold)} leaves out {percent(dropped_rows(plan).mean(), 1)}"
    return picture(draw, label + ".", 240, 230)
