"""Where everything came from: settings of each station, the command, versions."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from saerl_fast import __version__
from saerl_fast.report.read import Run

HASHES = ("columns", "ids", "texts", "model_weights", "tokenizer", "sae")
"""Entries of a fingerprint that are hashes: shown, cut to their beginning."""
HASH_SHOWN = 12
VERSIONS = ("saerl_fast", "python", "machine", "torch", "transformers", "trl", "accelerate", "datasets")


def sources_view(run: Run) -> dict[str, Any]:
    """One block of settings per station, and versions side by side."""
    stations: list[dict[str, Any]] = []
    if run.demo is not None:
        stations.append(_station("demo", run.demo))
    if run.features is not None:
        job = run.features.job
        stations.append(_station("featurize", {**job.source, **job.fingerprint}))
    if run.labels is not None:
        manifest = run.labels.manifest
        stations.append(_station("label", {**(manifest.get("source") or {}), **manifest["fingerprint"]}))
    for plan in run.plans:
        summary = {key: value for key, value in plan.plan.summary().items() if key not in ("clusters", "left_out")}
        stations.append(_station(f"plan: {plan.name}", summary))
    for training in run.trainings:
        stations.append(_station(f"train: {training.name}", training.run["config"]))
    return {"command": _command(run), "stations": stations, "versions": _versions(run)}


def _command(run: Run) -> str | None:
    command = (run.demo or {}).get("command")
    if isinstance(command, list):
        return " ".join(map(str, command))
    return command if isinstance(command, str) else None


def _station(name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        {"name": key, "value": _shown(key, value)} for key, value in settings.items() if value not in (None, {}, [])
    ]
    return {"name": name, "rows": rows}


def _shown(key: str, value: Any) -> str:
    if isinstance(value, str):
        return f"{value[:HASH_SHOWN]}…" if key in (*HASHES, "sha256", "digest") and len(value) > HASH_SHOWN else value
    return json.dumps(value, ensure_ascii=False, default=str)


def _versions(run: Run) -> list[dict[str, str]]:
    """What each station says about the versions it ran with, and those that make this page."""
    found: list[dict[str, str]] = []
    if run.features is not None:
        found.append(_line("featurize", run.features.job.fingerprint))
    if run.labels is not None:
        found.append(_line("label", run.labels.manifest["fingerprint"]))
    for training in run.trainings:
        found.append(_line(f"train: {training.name}", training.run.get("versions") or {}))
    here = {"saerl_fast": __version__, "python": sys.version.split()[0]}
    here |= {name: metadata.version(name) for name in ("matplotlib", "jinja2")}
    found.append({"station": "this page", "versions": _joined(here)})
    return found


def _line(station: str, versions: Mapping[str, Any]) -> dict[str, str]:
    return {"station": station, "versions": _joined({name: versions[name] for name in VERSIONS if versions.get(name)})}


def _joined(versions: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) or "not recorded"
