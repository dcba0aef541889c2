"""GRPO runs: reward over steps, held-out accuracy before and after, and whether the runs can be told apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saerl_fast.report.drawing import MUTED, SERIES, Picture, half_picture, horizontal_grid, picture
from saerl_fast.report.read import Run, Training
from saerl_fast.report.wording import MISSING, figure, gap_in_words, percent, plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHORT = 500
"""Fewer steps than this are called short."""
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MARKERS = "osD^vP"
MOST_DRAWN, MOST_VALUES = 20, 50
"""Values of a column that are drawn, and that stand in the table."""
PART = 10
"""A smoothed line is a mean over this part of the steps."""


def training_view(run: Run, level: str | None = None) -> dict[str, Any] | None:
    """level: the held-out column to draw accuracy by; without it the first whose values are numbers. Every other column
    of eval.json has a table."""
    runs = run.trainings
    if not runs:
        return None
    drawn = [found for found in runs if len(_curve(found, "reward")[0])]
    steps = max((int(found.run["steps"]) for found in runs), default=0)
    return {
        "runs": [_view(found, number) for number, found in enumerate(runs)],
        "reward": curves_picture(runs, "reward", "reward") if drawn else None,
        "flat": curves_picture(runs, "frac_reward_zero_std", "share of prompts") if drawn else None,
        "window": {found.name: window_of(len(_curve(found, "reward")[0])) for found in drawn},
        "accuracy": accuracy_picture(runs),
        "by": by_columns(runs, level),
        "comparisons": comparisons(runs),
        "caution": caution(runs, steps),
    }


def _view(found: Training, number: int) -> dict[str, Any]:
    steps, reward = _curve(found, "reward")
    flat = _curve(found, "frac_reward_zero_std")[1]
    size = max(1, len(reward) // PART)
    return {
        "name": found.name,
        "number": number % len(SERIES) + 1,
        "baseline": found.baseline,
        "finished": found.done is not None,
        "steps": int(steps[-1]) if len(steps) else 0,
        "planned_steps": found.run["steps"],
        "seconds": (found.done or {}).get("seconds"),
        "first_reward": float(reward[:size].mean()) if len(reward) else None,
        "last_reward": float(reward[-size:].mean()) if len(reward) else None,
        "part": size,
        "flat": float(flat.mean()) if len(flat) else None,
        "eval": found.eval,
        "policy": found.run["plan"].get("policy"),
    }


def _curve(found: Training, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(steps, values) of one number of metrics.jsonl, where it is known."""
    known = [(line["step"], line[name]) for line in found.metrics if line.get(name) is not None]
    return np.array([step for step, _ in known], float), np.array([value for _, value in known], float)


def window_of(steps: int) -> int:
    """Steps of the centred mean that smooths a curve: a tenth of them, odd, 3 at least."""
    return max(3, steps // PART // 2 * 2 + 1)


def smooth(values: NDArray[np.float64], window: int) -> NDArray[np.float64]:
    """Centred means; at the ends, of the part of the window that is there."""
    ones = np.ones(window)
    return (
        np.convolve(values, ones, "same")[: len(values)]
        / np.convolve(np.ones(len(values)), ones, "same")[: len(values)]
    )


def curves_picture(runs: Sequence[Training], name: str, title: str) -> Picture:
    """One number over the steps of all runs: every step faint, a centred mean on top."""
    curves = [(found, number, *_curve(found, name)) for number, found in enumerate(runs)]
    curves = [curve for curve in curves if len(curve[2])]

    def draw(canvas: Figure, wide: bool) -> None:
        axes = canvas.subplots()
        for _, number, steps, values in curves:
            colour, dash = SERIES[number % len(SERIES)], DASHES[number % len(DASHES)]
            axes.plot(steps, values, color=colour, lw=0.8, alpha=0.3)
            if len(values) >= 3:
                axes.plot(
                    steps, smooth(values, min(window_of(len(values)), len(values))), color=colour, lw=2.2, ls=dash
                )
        axes.set(xlabel="step", ylabel=title)
        axes.margins(x=0.01)
        horizontal_grid(axes)

    ends = []
    for found, _, _, values in curves:
        part = max(1, len(values) // PART)
        first, last = figure(values[:part].mean()), figure(values[-part:].mean())
        ends.append(f"{found.name} from {first} in the first tenth of its steps to {last} in the last")
    return picture(draw, f"{title.capitalize()} over steps: {'; '.join(ends)}.", 270, 230)


def accuracy_picture(runs: Sequence[Training]) -> Picture | None:
    """Held-out accuracy before and after with one standard error, a line per run."""
    known = [(number, found.eval) for number, found in enumerate(runs) if found.eval is not None]
    if not known:
        return None

    def draw(canvas: Figure, wide: bool) -> None:
        axes = canvas.subplots()
        for place, (number, found) in enumerate(known):
            parts = [(x, found[when]) for x, when in enumerate(("before", "after")) if found.get(when)]
            shift = (place - (len(known) - 1) / 2) * 0.05
            at = [x + shift for x, _ in parts]
            height = [part["accuracy"] for _, part in parts]
            error = [part["standard_error"] or 0.0 for _, part in parts]
            colour = SERIES[number % len(SERIES)]
            axes.errorbar(at, height, yerr=error, fmt="none", ecolor=colour, elinewidth=1.2)
            axes.plot(
                at,
                height,
                color=colour,
                marker=MARKERS[number % len(MARKERS)],
                ms=5.5,
                lw=1.6,
                ls=DASHES[number % len(DASHES)],
            )
        axes.set_xticks([0, 1], labels=["before", "after"])
        axes.set(xlim=(-0.35, 1.35), ylabel="held-out accuracy")
        horizontal_grid(axes)

    said = []
    for number, found in known:
        after = f", {percent(found['after']['accuracy'], 1)} after" if found.get("after") else ""
        said.append(f"{runs[number].name} {percent(found['before']['accuracy'], 1)} before{after}")
    return half_picture(draw, f"Held-out accuracy with one standard error: {'; '.join(said)}.", 230)


def by_columns(runs: Sequence[Training], level: str | None) -> list[dict[str, Any]]:
    """Accuracy after training by the values of each column, the drawn one first: tables, and a picture of that one."""
    known = [(number, found) for number, found in enumerate(runs) if found.eval is not None]
    columns = list(dict.fromkeys(name for _, found in known for name in (found.eval or {})["before"].get("by") or {}))
    numeric = [name for name in columns if all(_is_number(value) for value in _values(known, name))]
    first = level if level in columns else next(iter([*numeric, *columns]), None)
    columns.sort(key=lambda name: name != first)
    return [_by_column(known, column, drawn=column == first and column in numeric) for column in columns]


def _by_column(known: Sequence[tuple[int, Training]], column: str, *, drawn: bool) -> dict[str, Any]:
    values = _values(known, column)
    rows: list[dict[str, Any]] = [
        {
            "value": value,
            "before": _part(known[0][1], "before", column, value),
            "after": [_part(found, "after", column, value) for _, found in known],
        }
        for value in values[:MOST_VALUES]
    ]
    drawing = _by_picture(known, column, values) if drawn and 1 < len(values) <= MOST_DRAWN else None
    heads = [{"name": found.name, "number": number % len(SERIES) + 1} for number, found in known]
    more = max(0, len(values) - MOST_VALUES)
    return {"column": column, "heads": heads, "rows": rows, "more": more, "picture": drawing}


def _values(known: Sequence[tuple[int, Training]], column: str) -> list[str]:
    return list(
        dict.fromkeys(value for _, found in known for value in (found.eval or {})["before"]["by"].get(column, {}))
    )


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _part(found: Training, when: str, column: str, value: str) -> dict[str, Any] | None:
    part: dict[str, Any] | None = ((found.eval or {}).get(when) or {}).get("by", {}).get(column, {}).get(value)
    return part


def _by_picture(known: Sequence[tuple[int, Training]], column: str, values: Sequence[str]) -> Picture:
    def draw(canvas: Figure, wide: bool) -> None:
        axes = canvas.subplots()
        at = np.arange(len(values), dtype=float)
        first = [_part(known[0][1], "before", column, value) for value in values]
        axes.plot(at, [part["accuracy"] if part else np.nan for part in first], color=MUTED, lw=1.2, ls=(0, (2, 2)))
        for place, (number, found) in enumerate(known):
            parts = [_part(found, "after", column, value) for value in values]
            shift = (place - (len(known) - 1) / 2) * 0.12
            height = [part["accuracy"] if part else np.nan for part in parts]
            error = [(part["standard_error"] or 0.0) if part else 0.0 for part in parts]
            colour = SERIES[number % len(SERIES)]
            axes.errorbar(
                at + shift,
                height,
                yerr=error,
                color=colour,
                marker=MARKERS[number % len(MARKERS)],
                ms=5,
                lw=1,
                elinewidth=1.2,
            )
        axes.set_xticks(at, labels=[f"{float(value):g}" for value in values])
        axes.set(xlabel=f"{column:.20}", ylabel="held-out accuracy")
        horizontal_grid(axes)

    return half_picture(draw, f"Held-out accuracy after training by {column}; the figures stand in the table.", 230)


def comparisons(runs: Sequence[Training]) -> list[dict[str, Any]]:
    """Each run with a plan against each of random order; where there is but one kind, each against the first."""
    scored = [found for found in runs if found.eval is not None and found.eval.get("after")]
    ours = [found for found in scored if not found.baseline]
    theirs = [found for found in scored if found.baseline]
    if not ours or not theirs:
        ours, theirs = scored[1:], scored[:1]
    return [compare(one, other) for one in ours for other in theirs]


def compare(one: Training, other: Training) -> dict[str, Any]:
    """Held-out accuracy after training, problem by problem where both answered the same ones."""
    first, second = (found.eval or {} for found in (one, other))
    gap = first["after"]["accuracy"] - second["after"]["accuracy"]
    errors = [found["after"].get("standard_error") for found in (first, second)]
    error = None if None in errors else math.hypot(*errors)
    paired = one.answers is not None and other.answers is not None
    if paired:
        rates = {found.id: found.pass_rate for found in other.answers or []}
        changes = np.array([found.pass_rate - rates[found.id] for found in one.answers or [] if found.id in rates])
        paired = len(changes) == len(rates) == len(one.answers or []) and len(changes) > 1
        if paired:
            gap, error = float(changes.mean()), float(changes.std(ddof=1) / math.sqrt(len(changes)))
    mine, theirs = one.run["fingerprint"], other.run["fingerprint"]
    differing = [key for key in sorted({*mine, *theirs}) if mine.get(key) != theirs.get(key)]
    same = gap == 0 and not error
    verdict = "the answers are the same" if same else gap_in_words(gap, error or 0.0)
    side = "above" if gap > 0 else "below" if gap < 0 else "from"
    sentence = (
        f"After training, {one.name} is {figure(abs(gap) * 100, 1)} percentage points {side} {other.name} on held-out "
        f"problems (standard error {figure(error * 100, 1) if error is not None else MISSING}): {verdict}."
    )
    return {
        "one": one.name,
        "other": other.name,
        "gap": gap,
        "error": error,
        "paired": paired,
        "n": first["n"],
        "differing": differing,
        "same_steps": one.run["steps"] == other.run["steps"],
        "within": error is not None and abs(gap) <= error,
        "sentence": sentence,
    }


def caution(runs: Sequence[Training], steps: int) -> str:
    """What single runs cannot show, whatever their figures are."""
    if len(runs) == 1:
        return (
            f"This is a single run of {plural(steps, 'step')}, with one seed and no run to compare it with. "
            "It proves nothing about SAERL."
        )
    short = "A comparison this short" if steps < SHORT else "One run of each kind"
    return (
        f"These are single runs of at most {plural(steps, 'step')}, with one seed each. {short} proves nothing about "
        "SAERL, whichever way it falls: the standard error counts the luck of the held-out problems, not that of the "
        "training, which only more seeds would show."
    )
