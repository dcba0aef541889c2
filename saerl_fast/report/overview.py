"""The first screen: what was read, what was made of it, the headline figures with what they are held against."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from saerl_fast.report.read import Features, Run
from saerl_fast.report.wording import MISSING, figure, percent, plural, points, significant, whole

ABSENT = {
    "features": "features: saerl featurize DATA --out DIR/features",
    "evaluation": "scores beside controls: saerl evaluate DIR/features --json DIR/evaluation.json",
    "labels": "pass rates: saerl label DATA --out DIR/labels",
    "plan": "plan: saerl plan DIR/features --out DIR/plan",
    "sae": "SAE sanity: sae.json with explained_variance, l0 and dead_share",
    "training": "GRPO runs: saerl train --config FILE, with out: DIR/grpo/NAME",
}
"""What a report can show, and the command that leaves it."""
MOST_COMPARISONS = 3


def overview_view(run: Run, sections: dict[str, Any]) -> dict[str, Any]:
    """Tiles of one figure each with a line under it, what is absent, and the judgements in words."""
    tiles = [
        *_rows_tiles(run),
        *_cluster_tiles(run, sections),
        *_score_tiles(sections, run),
        *_sanity_tile(run),
        *_training_tiles(sections),
    ]
    judgements = list((sections["scores"] or {}).get("judgements", {}).values())
    sentences = [found["sentence"] for found in judgements]
    if sections["training"]:
        sentences += [found["sentence"] for found in sections["training"]["comparisons"][:MOST_COMPARISONS]]
    there = {
        "features": run.features,
        "evaluation": run.evaluation,
        "labels": run.labels and run.labels.labels,
        "plan": run.plans,
        "sae": run.sae,
        "training": run.trainings,
    }
    return {
        "tiles": tiles,
        "sentences": sentences,
        "reader": None if run.features is None else reader(run.features),
        "absent": [text for name, text in ABSENT.items() if not there[name]],
    }


def reader(features: Features) -> dict[str, Any]:
    """The model and the SAE that read the rows, in words."""
    job = features.job.fingerprint
    source = features.job.source.get("data")
    kind = {"topk": "TopK"}.get(str(job.get("sae_kind")), str(job.get("sae_kind") or ""))
    return {
        # a path says little; the SAE knows the name of the model it was made for
        "name": str(job.get("sae_model") or job.get("model") or MISSING),
        "source": None if source is None else str(source).rstrip("/").rsplit("/", 1)[-1],
        "layer": job.get("layer"),
        "pool": job.get("pool"),
        "kind": kind,
        "k": job.get("sae_k"),
        "width": features.rows.n_features,
    }


def _rows_tiles(run: Run) -> list[dict[str, str]]:
    tiles = []
    if run.features is not None:
        rows = run.features.rows
        counts = {name: count for name, count in rows.status_counts().items() if name != "ok"}
        lost = ", ".join(f"{whole(count)} {name}" for name, count in counts.items())
        tiles.append({"name": "Rows read", "value": whole(len(rows)), "note": lost or "all of them usable"})
    if run.plan is not None:
        summary = run.plan.plan.summary()
        gone = ", ".join(f"{whole(count)} {name}" for name, count in summary["left_out"].items())
        note = f"left out: {gone}" if gone else "none left out"
        tiles.append({"name": "Rows in the plan", "value": whole(summary["kept"]), "note": note})
        steps = f"{whole(summary['prompts_per_step'])} prompts each, {plural(summary['epochs'], 'epoch')}"
        steps += _other_plans(run, run.plan.name)
        tiles.append({"name": "Steps planned", "value": whole(summary["steps"]), "note": steps})
    return tiles


def _cluster_tiles(run: Run, sections: dict[str, Any]) -> list[dict[str, str]]:
    found = sections["clusters"]
    if found is None:
        return []
    crossing = found["crossing"]
    note = f"{whole(found['smallest'])} to {whole(found['largest'])} rows"
    if crossing:
        note += f"; topic purity {percent(crossing['purity'])}, one guess {percent(crossing['guess'])}"
    return [{"name": "Clusters", "value": whole(found["count"]), "note": note}]


def _other_plans(run: Run, shown: str) -> str:
    """What the GRPO runs took instead, where that is not the plan of the tile."""
    others = {}
    for training in run.trainings:
        name = Path(training.run["config"].get("plan") or shown).name
        if name != shown:
            others[name] = training.run["steps"]
    return "".join(f"; GRPO here took {plural(steps, 'step')} of {name}" for name, steps in others.items())


def _score_tiles(sections: dict[str, Any], run: Run) -> list[dict[str, str]]:
    judgements = (sections["scores"] or {}).get("judgements", {})
    probes = (run.plan.signals or {}).get("held_out", {}) if run.plan else {}
    tiles = []
    for name, found in judgements.items():
        control = "no control"
        if found["control"]:
            control = f"best control {figure(found['control_score'])} ({found['control']})"
        note = f"± {figure(found['error'])}; {control}"
        if name in probes:
            note += f"; the plan's probe {figure(probes[name]['score'])}, over {plural(probes[name]['n'], 'row')}"
        title = f"{found['name']}, held-out {found['metric']}"
        tiles.append({"name": title, "value": figure(found["score"]), "note": note})
    return tiles


def _sanity_tile(run: Run) -> list[dict[str, str]]:
    if run.sae is None:
        return []
    note = f"L0 {significant(run.sae['l0'])}, {percent(run.sae['dead_share'], 1)} dead"
    return [{"name": "SAE explained variance", "value": figure(run.sae["explained_variance"]), "note": note}]


def _training_tiles(sections: dict[str, Any]) -> list[dict[str, str]]:
    training = sections["training"]
    if training is None:
        return []
    if training["comparisons"]:
        found = training["comparisons"][0]
        value = f"{points(found['gap'])} pts"
        error = MISSING if found["error"] is None else figure(found["error"] * 100, 1)
        note = f"± {error} (standard error): {found['one']} less {found['other']}"
        return [{"name": "Held-out accuracy, difference", "value": value, "note": note}]
    scored = [found for found in training["runs"] if found["eval"] and found["eval"].get("after")]
    return [
        {
            "name": f"Held-out accuracy, {found['name']}",
            "value": percent(found["eval"]["after"]["accuracy"], 1),
            "note": f"before: {percent(found['eval']['before']['accuracy'], 1)}",
        }
        for found in scored[:1]
    ]


def sanity_view(run: Run) -> dict[str, Any] | None:
    """sae.json beside what the features themselves say; None without either."""
    if run.sae is None and run.features is None:
        return None
    found: dict[str, Any] = {"measured": run.sae, "features": None}
    if run.features is not None:
        rows = run.features.rows[run.features.rows.usable]
        alive = len(np.unique(rows.indices[rows.values > 0]))
        found["features"] = {
            "width": rows.n_features,
            "alive": alive,
            "alive_share": alive / rows.n_features,
            "per_row": rows.nnz / max(1, len(rows)),
            "tokens": float(rows.n_tokens.mean()) if len(rows) else None,
            "rows": len(rows),
            "pool": run.features.job.fingerprint.get("pool"),
        }
    return found
