"""The scores of `saerl evaluate`: SAE features beside the controls they have to beat, and what that comes to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from saerl_fast.report.wording import figure, gap_in_words
from saerl_fast.signals.evaluate_table import KINDS, METRICS

OURS = {"topic": "sae", "difficulty": "sae_elasticnet", "quality": "sae"}
"""The kind whose score stands for SAE features: for difficulty the model that a plan's proxy is."""
REACH = {"sae": "SAE features reach", "sae_elasticnet": "an elastic net on SAE features reaches"}
CONTROLS = ("raw", "tfidf", "tfidf_latex", "length")
CHANCE = {"auc": 0.5}
WHAT = {"topic": "Topic", "difficulty": "Difficulty", "quality": "Quality"}


def scores_view(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """Rows by kind of feature, columns by label, and one judgement per label."""
    names = [name for name in WHAT if name in evaluation]
    columns = [*names, *(["topic_nmi"] if "topic_nmi" in evaluation else [])]
    kinds = [kind for kind in KINDS if any(kind in evaluation[name] for name in columns)]
    best = {name: max(evaluation[name].values(), default=None) for name in columns}
    rows = [
        {
            "name": KINDS[kind],
            "ours": kind.startswith("sae"),
            "cells": [
                {"score": evaluation[name].get(kind), "best": evaluation[name].get(kind) == best[name]}
                for name in columns
            ],
        }
        for kind in kinds
    ]
    return {
        "heads": [_head(name, evaluation["details"]) for name in columns],
        "rows": rows,
        "details": [evaluation["details"][name] if name in names else None for name in columns],
        "judgements": {name: judge(name, evaluation) for name in names},
    }


def judge(name: str, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """One label: our score, the best control, and their gap held against its error.

    The two scores are of the same rows; counted as independent, the error of the gap is overstated.
    """
    scores, details = evaluation[name], evaluation["details"][name]
    ours = OURS[name] if OURS[name] in scores else "sae"
    controls = {kind: scores[kind] for kind in CONTROLS if kind in scores}
    metric = METRICS.get(details["metric"], details["metric"])
    found = {
        "name": WHAT[name],
        "metric": metric,
        "score": scores[ours],
        "ours": KINDS[ours],
        "error": details["standard_error"],
        "control": None,
        "chance": scores.get("majority", CHANCE.get(details["metric"], 0.0)),
    }
    if not controls:
        return found | {
            "sentence": f"{WHAT[name]}: {metric} {figure(scores[ours])}, with no control to hold it against."
        }
    control = max(controls, key=lambda kind: controls[kind])
    gap, error = scores[ours] - controls[control], math.sqrt(2) * details["standard_error"]
    sentence = f"{WHAT[name]}: {REACH[ours]} {metric} {figure(scores[ours])}"
    if abs(scores[ours] - found["chance"]) < 2 * details["standard_error"]:
        sentence += ", no better than guessing"
    sentence += f"; the best control, {KINDS[control]}, {figure(controls[control])}. "
    sentence += (
        "They are equal."
        if not gap
        else f"SAE features are {_side(gap)} by {figure(abs(gap))}, {gap_in_words(gap, error)}."
    )
    return found | {"control": KINDS[control], "control_score": controls[control], "gap": gap, "sentence": sentence}


def _side(gap: float) -> str:
    return "ahead" if gap > 0 else "behind"


def _head(name: str, details: Mapping[str, Any]) -> dict[str, str]:
    if name == "topic_nmi":
        return {"name": "Clusters × topic", "metric": "NMI"}
    metric = details[name]["metric"]
    return {"name": WHAT[name], "metric": METRICS.get(metric, metric)}
