"""From features and a few labels to the three signals a plan is made of."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saerl_fast.durable import read_object, replace
from saerl_fast.errors import FormatError, InputError
from saerl_fast.features import SparseFeatures
from saerl_fast.signals import DifficultyProxy, QualityProbe, StreamingKMeans
from saerl_fast.signals.inputs import is_missing

logger = logging.getLogger(__name__)

FIT_ROWS = 200_000
"""Rows that clusters and probes are fitted on at most; about 2 GB at 300 features a row."""
FORMAT, FORMAT_VERSION = "saerl-signals", 1
SIGNALS = "signals.json"


@dataclass(frozen=True)
class Signals:
    """One value per row of the features.

    clusters int64 [S]; difficulty float64 [S], higher is harder, or None; quality float64 [S], higher is
    better, or None. Rows without features (``status`` empty, invalid, nonfinite) hold cluster 0 and the
    median of the rest: a plan leaves them out by their status. held_out: each probe's score on labels it
    did not see. labelled: how many usable rows had a label, per probe.
    """

    clusters: NDArray[np.int64]
    difficulty: NDArray[np.float64] | None = None
    quality: NDArray[np.float64] | None = None
    held_out: Mapping[str, Any] = field(default_factory=dict)
    labelled: Mapping[str, int] = field(default_factory=dict)

    def check_filter(self) -> None:
        """Raise InputError where the quality probe is no better than guessing: a filter by it drops at random."""
        report = self.held_out.get("quality")
        if report is not None and report["near_chance"]:
            raise InputError(
                f"the quality probe's held-out {report['metric']} is {report['score']:.3f} over {report['n']} rows, "
                "near that of guessing; filtering by it drops rows at random. Label more rows, or do not filter"
            )


def steer(
    features: SparseFeatures,
    *,
    n_clusters: int = 16,
    difficulty: Sequence[Any] | None = None,
    quality: Sequence[Any] | None = None,
    good_label: str | None = None,
    seed: int = 0,
) -> Signals:
    """Cluster the rows, and predict difficulty and quality for all of them from the labels given.

    difficulty: a number per row, None where unknown; higher is harder (for a pass rate, hand in 1 - rate).
    quality: two values or numbers, None where unknown; higher is better. For words, good_label is the good one.

    Raises InputError (and its children) for labels of the wrong length, all equal, or too few.
    """
    usable = features.usable
    if not usable.any():
        raise InputError("no row holds features; there is nothing to steer by")
    rows = features.to_scipy()[usable]
    models = _models(n_clusters, good_label, seed)
    clusters = models["clusters"].fit_predict(rows)
    held_out: dict[str, Any] = {}
    labelled: dict[str, int] = {}
    predicted: dict[str, NDArray[np.float64] | None] = {"difficulty": None, "quality": None}
    for name, labels in (("difficulty", difficulty), ("quality", quality)):
        if labels is None:
            continue
        probe = models[name]
        if len(labels) != len(features):
            raise InputError(f"{name}: one label per row is wanted, {len(features)}; got {len(labels)}")
        known = np.array(labels, dtype=object)[usable]
        probe.fit(rows, known)
        predicted[name] = _spread(np.asarray(probe.predict(rows), dtype=np.float64), usable)
        held_out[name] = probe.score_report_
        labelled[name] = sum(not is_missing(label) for label in known.tolist())
    return Signals(
        clusters=_spread(clusters.astype(np.int64), usable, fill=0),
        difficulty=predicted["difficulty"],
        quality=predicted["quality"],
        held_out=held_out,
        labelled=labelled,
    )


def steer_shards(
    read: Callable[[], Iterable[SparseFeatures]],
    rows: int,
    *,
    n_clusters: int = 16,
    difficulty: Sequence[Any] | None = None,
    quality: Sequence[Any] | None = None,
    good_label: str | None = None,
    seed: int = 0,
    fit_rows: int = FIT_ROWS,
) -> Signals:
    """The same as ``steer`` for rows that do not fit in memory: fitted on some of them, predicted shard by shard.

    read gives all of the rows in order, in parts, and is called a few times: ``lambda: read_shards(folder)``. rows is
    their number. Up to ``fit_rows`` rows the result is that of ``steer``. Of more, the clusters are fitted on
    ``fit_rows`` rows and each probe on as many of its labelled rows at most, drawn by the seed; a line of log says so.
    """
    given = {name: found for name, found in (("difficulty", difficulty), ("quality", quality)) if found is not None}
    if rows <= fit_rows:
        whole = SparseFeatures.concatenate(list(read()))
        return steer(whole, n_clusters=n_clusters, good_label=good_label, seed=seed, **given)
    logger.warning("steer: %d rows; fitted on %d of them, and at most as many with a label", rows, fit_rows)
    for name, labels in given.items():
        if len(labels) != rows:
            raise InputError(f"{name}: one label per row is wanted, {rows}; got {len(labels)}")
    known = {name: np.array([not is_missing(label) for label in labels]) for name, labels in given.items()}
    generator = np.random.default_rng(seed)
    models: dict[str, Any] = _models(n_clusters, good_label, seed)
    for name, candidates in (("clusters", np.ones(rows, bool)), *known.items()):
        chosen = np.flatnonzero(candidates)
        chosen = np.sort(generator.permutation(chosen)[:fit_rows])
        if not len(chosen):
            raise InputError(f"{name}: no row has a label")
        sample = SparseFeatures.gather(read(), chosen)
        usable = sample.usable
        if not usable.any():
            raise InputError(f"{name}: none of the rows to be fitted on holds features")
        known_labels = None
        if name in given:
            known_labels = np.array([given[name][row] for row in chosen.tolist()], dtype=object)[usable]
        models[name].fit(sample.to_scipy()[usable], known_labels)
    return _predicted(read(), {name: models[name] for name in ("clusters", *given)}, known, rows)


def _predicted(
    parts: Iterable[SparseFeatures], models: Mapping[str, Any], known: Mapping[str, NDArray[np.bool_]], rows: int
) -> Signals:
    """What the fitted models say of every usable row, a part at a time."""
    usable = np.zeros(rows, dtype=bool)
    found: dict[str, NDArray[Any]] = {
        name: np.zeros(rows, dtype=np.int64 if name == "clusters" else np.float64) for name in models
    }
    start = 0
    for part in parts:
        keep = np.flatnonzero(part.usable)
        usable[start + keep] = True
        if len(keep):
            for name, model in models.items():
                found[name][start + keep] = model.predict(part.to_scipy()[keep])
        start += len(part)
    for name in known:
        found[name] = _spread(found[name][usable], usable)
    return Signals(
        clusters=found["clusters"],
        difficulty=found.get("difficulty"),
        quality=found.get("quality"),
        held_out={name: models[name].score_report_ for name in known},
        labelled={name: int((mask & usable).sum()) for name, mask in known.items()},
    )


def _models(n_clusters: int, good_label: str | None, seed: int) -> dict[str, Any]:
    return {
        "clusters": StreamingKMeans(n_clusters=n_clusters, value_transform="sqrt", random_state=seed),
        "difficulty": DifficultyProxy(random_state=seed),
        "quality": QualityProbe(good_label=good_label, random_state=seed),
    }


def write_signals(
    signals: Signals,
    folder: str | os.PathLike[str],
    *,
    filtered: bool,
    features: str | os.PathLike[str] | None = None,
) -> Path:
    """``signals.json`` beside a plan: what the probes that it rests on were worth.

    folder: of the plan, which is there already. filtered: whether rows were left out by predicted quality.
    features: the feature folder, kept relative to ``folder``. An earlier file is replaced; same arguments, same bytes.
    """
    found = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "rows": len(signals.clusters),
        "clusters": len(np.unique(signals.clusters)),
        "held_out": dict(signals.held_out),
        "labelled": dict(signals.labelled),
        "filtered": bool(filtered),
        "features": None if features is None else os.path.relpath(features, folder),
    }
    path = Path(folder) / SIGNALS
    replace(path, (json.dumps(found, indent=1, sort_keys=True) + "\n").encode())
    return path


def read_signals(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What ``write_signals`` wrote. Raises CorruptStoreError (not JSON) and FormatError (something else)."""
    found = read_object(Path(path))
    if found.get("format") != FORMAT or found.get("format_version") != FORMAT_VERSION:
        raise FormatError(
            f"{path}: wanted {FORMAT} of version {FORMAT_VERSION}, got {found.get('format')!r:.80} of "
            f"{found.get('format_version')!r:.80}; make the plan again"
        )
    for name, kind in (("held_out", dict), ("labelled", dict), ("filtered", bool)):
        if type(found.get(name)) is not kind:
            raise FormatError(f"{path}: wanted {name} as {kind.__name__}, got {found.get(name)!r:.80}")
    return found


def _spread(values: NDArray[Any], usable: NDArray[np.bool_], fill: float | None = None) -> NDArray[Any]:
    """Values of the usable rows, put in their places among all rows."""
    out = np.full(len(usable), np.median(values) if fill is None else fill, dtype=values.dtype)
    out[usable] = values
    return out
