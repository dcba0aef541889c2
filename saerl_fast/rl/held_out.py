"""Held-out accuracy before and after training, as the rollouts of ``label`` tell it."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from saerl_fast.durable import replace
from saerl_fast.rl.label import Label, label
from saerl_fast.rl.problems import Problems
from saerl_fast.rl.train_config import TrainConfig
from saerl_fast.rl.verifier import Verifier

NAME = "eval.json"


def answer_held_out(
    problems: Problems,
    model: Any,
    tokenizer: Any,
    verifier: Verifier,
    config: TrainConfig,
    *,
    max_new_tokens: int,
    folder: Path,
    progress: bool,
) -> list[Label]:
    """Labels of the held-out rows, in ``folder``; goes on where a run was killed."""
    rollouts = 1 if config.eval_rollouts == "greedy" else int(config.eval_rollouts)
    return label(
        problems.rows,
        model,
        tokenizer,
        verifier,
        text_field=problems.text_field,
        answer_field=problems.answer_field,
        id_field=problems.id_field,
        rollouts=rollouts,
        max_new_tokens=max_new_tokens,
        temperature=0.0 if config.eval_rollouts == "greedy" else 1.0,
        seed=config.seed,
        batch_size=max(1, config.eval_batch_size // rollouts),
        out=folder,
        source={"data": config.eval},
        progress=progress,
    )


def write_eval(
    path: Path, config: TrainConfig, problems: Problems, before: Sequence[Label], after: Sequence[Label] | None
) -> dict[str, Any]:
    """eval.json; without ``after`` the run is still going."""
    result: dict[str, Any] = {
        "data": config.eval,
        "n": len(before),
        "left_out": len(problems) - len(before),
        "rollouts": before[0].rollouts,
        "greedy": config.eval_rollouts == "greedy",
        "before": summarise(before, problems, config.eval_by),
        "after": None,
        "difference": None,
    }
    if after is not None:
        result["after"] = summarise(after, problems, config.eval_by)
        changes = [new.pass_rate - old.pass_rate for old, new in zip(before, after, strict=True)]
        result["difference"] = {"accuracy": _mean(changes), "standard_error": _standard_error(changes)}
    replace(path, (json.dumps(result, indent=1) + "\n").encode())
    return result


def summarise(labels: Sequence[Label], problems: Problems, columns: Sequence[str]) -> dict[str, Any]:
    """accuracy (mean pass rate), its standard error over the problems, and both by each column that is there."""
    row_of = dict(zip(problems.ids, problems.rows, strict=True))
    by: dict[str, dict[str, Any]] = {}
    for column in columns:
        groups: dict[Any, list[float]] = defaultdict(list)
        for found in labels:
            value = row_of[found.id].get(column)
            if value is not None:
                groups[value].append(found.pass_rate)
        if groups:
            by[column] = {str(value): _describe(groups[value]) for value in sorted(groups, key=_order)}
    return {**_describe([found.pass_rate for found in labels]), "by": by}


def _order(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, (int, float))
    return (not number, float(value) if number else 0.0, str(value))


def _describe(rates: Sequence[float]) -> dict[str, Any]:
    return {"accuracy": _mean(rates), "standard_error": _standard_error(rates), "n": len(rates)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _standard_error(values: Sequence[float]) -> float | None:
    """Of the mean over the problems; None for a single one."""
    if len(values) < 2:
        return None
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))
