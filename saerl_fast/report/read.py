"""The pieces of a run, read and checked. What is absent is None; what is broken raises."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saerl_fast.curriculum.plan import BatchPlan
from saerl_fast.durable import read_object
from saerl_fast.errors import FormatError, InputError, JobMismatchError, MissingDependency
from saerl_fast.extract.job import MANIFEST, Job
from saerl_fast.extract.source import as_text, column, read_texts_again
from saerl_fast.extract.store import COLUMNS, load_features, read_columns
from saerl_fast.features import SparseFeatures
from saerl_fast.report.checked import NUMBER, OBJECT, TEXT, WHOLE, fits, read_lines, require
from saerl_fast.report.find import RUN, Pieces
from saerl_fast.rl.label import LABELS, Label, read_labels
from saerl_fast.steer import SIGNALS, read_signals

logger = logging.getLogger(__name__)

SOUND = frozenset({"", "0", "false", "none", "no", "sound", "ok", "good"})
"""What a defect column holds for a row without defect, beside null, False and 0; case plays no part."""


@dataclass(frozen=True)
class Features:
    """A feature folder: rows, the table kept beside them, the texts where they can be read again."""

    rows: SparseFeatures
    job: Job
    texts: list[str] | None
    why_no_texts: str | None
    topic: list[str | None] | None
    level: NDArray[np.float64] | None
    defect: NDArray[np.bool_] | None


@dataclass(frozen=True)
class Plan:
    """A plan by the name of its folder, and the signals.json beside it."""

    name: str
    plan: BatchPlan
    signals: Mapping[str, Any] | None


@dataclass(frozen=True)
class Labels:
    """Pass rates, and the manifest of the job that found them; labels is None while that job is unfinished."""

    labels: list[Label] | None
    manifest: Mapping[str, Any]


@dataclass(frozen=True)
class Training:
    """A GRPO run by the name of its folder: run.json, metrics.jsonl, eval.json, done.json, answers after it."""

    name: str
    run: Mapping[str, Any]
    metrics: list[dict[str, Any]]
    eval: Mapping[str, Any] | None
    done: Mapping[str, Any] | None
    answers: list[Label] | None

    @property
    def baseline(self) -> bool:
        """Whether its order is random: no plan, a plan shuffled, or a plan of the policy random."""
        config = self.run["config"]
        policy = self.run["plan"].get("policy")
        return config.get("plan") is None or bool(config.get("shuffled")) or policy in ("random", "shuffled")


@dataclass(frozen=True)
class Run:
    """Everything the page is about."""

    folder: Path
    pieces: Pieces
    features: Features | None
    labels: Labels | None
    evaluation: Mapping[str, Any] | None
    sae: Mapping[str, Any] | None
    demo: Mapping[str, Any] | None
    plans: list[Plan]
    trainings: list[Training]

    @property
    def plan(self) -> Plan | None:
        """The plan whose clusters and predictions are shown: the first that is not of a random order."""
        steered = [found for found in self.plans if found.plan.policy.name not in ("random", "shuffled")]
        return next(iter([*steered, *self.plans]), None)

    @property
    def matched(self) -> tuple[Features, Plan] | None:
        """Features and plan, where the plan is of these very rows."""
        plan = self.plan
        if plan is None or self.features is None or plan.plan.ids.tolist() != list(self.features.rows.ids):
            return None
        return self.features, plan


def read_run(
    folder: Path, pieces: Pieces, *, data: str | None, topic: str | None, level: str | None, defect: str | None
) -> Run:
    """Raises InputError for a truth column that is not there; FormatError and store errors for broken pieces."""
    named = {"topic": topic, "level": level, "defect": defect}
    if pieces.features is None and (given := [name for name, value in named.items() if value is not None]):
        raise InputError(f"--{given[0]} names a column of a feature folder; there is none in {folder}")
    return Run(
        folder=folder,
        pieces=pieces,
        features=None if pieces.features is None else _read_features(pieces.features, folder, data, named),
        labels=None if pieces.labels is None else _read_labels(pieces.labels),
        evaluation=None if pieces.evaluation is None else read_evaluation(pieces.evaluation),
        sae=read_sanity(judged) if (judged := pieces.sae or pieces.sanity) else None,
        demo=None if pieces.demo is None else read_object(pieces.demo),
        plans=[_read_plan(path, folder) for path in pieces.plans],
        trainings=[_read_training(path, folder) for path in pieces.runs],
    )


def _read_features(path: Path, folder: Path, data: str | None, named: Mapping[str, str | None]) -> Features:
    rows = load_features(path)
    table = read_columns(path) if (path / COLUMNS).exists() else []
    texts, why = _read_texts(path, folder, data, len(rows))
    topic, level, defect = (
        None if name is None else column(table, name) for name in (named["topic"], named["level"], named["defect"])
    )
    return Features(
        rows=rows,
        job=Job.load(path),
        texts=texts,
        why_no_texts=why,
        topic=None if topic is None else [None if value in (None, "") else str(value) for value in topic],
        level=None if level is None else _numbers(level, str(named["level"])),
        defect=None if defect is None else np.array([str(value or "").lower() not in SOUND for value in defect]),
    )


def _read_texts(path: Path, folder: Path, data: str | None, rows: int) -> tuple[list[str] | None, str | None]:
    """The texts; or None, and why. Only a table that the caller names himself must be the right one."""
    source = Job.load(path).source
    if data is None and "data" not in source:
        return None, "the feature folder does not say which table its texts came from"
    beside = folder / Path(str(source.get("data"))).name
    moved = data is None and not Path(str(source["data"])).exists() and beside.is_file()
    try:
        found = read_texts_again(path, str(beside) if moved else data, rows)
    except (FormatError, JobMismatchError, MissingDependency, KeyError) as error:
        if data is not None:
            raise
        logger.warning("report: no texts: %s", error)
        return None, str(error)
    return [as_text(text) for text in found], None


def _numbers(values: Sequence[Any], name: str) -> NDArray[np.float64]:
    """Numbers as they are, or written as text (a .csv); NaN where there is none."""
    found = np.full(len(values), np.nan)
    for row, value in enumerate(values):
        if value is None or value == "":
            continue
        try:
            found[row] = float(value)
        except (TypeError, ValueError) as error:
            raise InputError(f"--level {name}: wanted numbers, got {value!r:.80} in row {row}") from error
    return found


def _read_labels(path: Path) -> Labels:
    manifest = read_object(path / MANIFEST)
    require(manifest, path / MANIFEST, {"fingerprint": OBJECT})
    require(manifest, path / MANIFEST, {"left_out": OBJECT, "source": OBJECT}, optional=True)
    return Labels(read_labels(path) if (path / LABELS).is_file() else None, manifest)


def read_evaluation(path: Path) -> dict[str, Any]:
    """What ``signals.evaluate`` returned, as JSON, with "level" besides where the demo wrote it. Raises FormatError."""
    found = read_object(path)
    require(found, path, {"rows": WHOLE, "details": OBJECT})
    for name in ("topic", "difficulty", "quality", "level", "topic_nmi"):
        if name not in found:
            continue
        require(found, path, {name: OBJECT})
        require(found[name], f"{path}, {name}", dict.fromkeys(found[name], NUMBER))
        if name == "topic_nmi":
            continue
        require(found[name], f"{path}, {name}", {"sae": NUMBER})
        require(found["details"], f"{path}, details", {name: OBJECT})
        wanted = {"metric": TEXT, "standard_error": NUMBER, "labelled": WHOLE, "tested": WHOLE}
        require(found["details"][name], f"{path}, details of {name}", wanted)
    if "difficulty" in found:
        details = found["details"]["difficulty"]
        require(details, f"{path}, details of difficulty", {"calibration": OBJECT}, optional=True)
        for kind, lists in (details.get("calibration") or {}).items():
            _require_bins(lists, f"{path}, calibration of {kind}")
    return found


def _require_bins(lists: Any, where: str) -> None:
    names = ("predicted", "observed", "n")
    columns = [lists.get(name) if isinstance(lists, dict) else None for name in names]
    equal = all(isinstance(values, list) and 0 < len(values) == len(columns[0] or ()) for values in columns)
    if not equal or not all(fits(value, NUMBER) for values in columns for value in values or ()):
        raise FormatError(f"{where}: wanted {', '.join(names)} as equally long lists of numbers; make the file again")
    errors = lists.get("standard_error")
    known = isinstance(errors, list) and len(errors) == len(lists["n"])
    if errors is not None and not (known and all(error is None or fits(error, NUMBER) for error in errors)):
        raise FormatError(f"{where}: wanted standard_error as a list as long as n; make the file again")


def read_sanity(path: Path) -> dict[str, Any]:
    """sae.json or sanity.json: l0, dead_share, and where known explained_variance and more. Raises FormatError."""
    found = read_object(path)
    require(found, path, {"l0": NUMBER, "dead_share": NUMBER})
    known = dict.fromkeys(("k", "d_sae", "rows", "outliers"), WHOLE)
    known |= dict.fromkeys(("explained_variance", "promised_l0", "norm", "norm_ratio"), NUMBER)
    require(found, path, known, optional=True)
    found = {**dict.fromkeys(known), "warnings": [], **found}
    doubts = found["warnings"]
    if not isinstance(doubts, list) or not all(isinstance(doubt, str) for doubt in doubts):
        raise FormatError(f"{path}: wanted warnings as a list of sentences; make the file again")
    return found


def _read_plan(path: Path, folder: Path) -> Plan:
    plan = BatchPlan.load(path)
    file = path / SIGNALS
    if not file.is_file():
        return Plan(_name(path, folder), plan, None)
    signals = read_signals(file)
    require(signals["labelled"], f"{file}, labelled", dict.fromkeys(signals["labelled"], WHOLE))
    require(signals["held_out"], f"{file}, held_out", dict.fromkeys(signals["held_out"], OBJECT))
    for name, report in signals["held_out"].items():
        wanted = {"metric": TEXT, "how": TEXT, "n": WHOLE} | dict.fromkeys(
            ("score", "chance", "standard_error"), NUMBER
        )
        require(report, f"{file}, held_out, {name}", wanted)
    return Plan(_name(path, folder), plan, signals)


def _read_training(path: Path, folder: Path) -> Training:
    run = read_object(path / RUN)
    require(run, path / RUN, {"config": OBJECT, "plan": OBJECT, "fingerprint": OBJECT, "steps": WHOLE})
    require(run, path / RUN, {"versions": OBJECT}, optional=True)
    metrics = read_lines(path / "metrics.jsonl") if (path / "metrics.jsonl").is_file() else []
    for line in metrics:
        require(line, path / "metrics.jsonl", {"step": WHOLE})
        require(line, path / "metrics.jsonl", {"reward": NUMBER, "frac_reward_zero_std": NUMBER}, optional=True)
    answers = path / "eval" / "after"
    return Training(
        name=_name(path, folder),
        run=run,
        metrics=metrics,
        eval=_read_eval(path / "eval.json") if (path / "eval.json").is_file() else None,
        done=read_object(path / "done.json") if (path / "done.json").is_file() else None,
        answers=read_labels(answers) if (answers / LABELS).is_file() else None,
    )


def _read_eval(path: Path) -> dict[str, Any]:
    found = read_object(path)
    require(found, path, {"n": WHOLE, "before": OBJECT})
    require(found, path, {"after": OBJECT, "difference": OBJECT}, optional=True)
    for when in ("before", "after"):
        if found.get(when) is None:
            continue
        require(found[when], f"{path}, {when}", {"by": OBJECT}, optional=True)
        groups = found[when].get("by") or {}
        require(groups, f"{path}, {when}, by", dict.fromkeys(groups, OBJECT))
        for name, by in groups.items():
            require(by, f"{path}, {when}, {name}", dict.fromkeys(by, OBJECT))
        for part in [found[when], *(part for by in groups.values() for part in by.values())]:
            require(part, f"{path}, {when}", {"accuracy": NUMBER, "n": WHOLE})
            require(part, f"{path}, {when}", {"standard_error": NUMBER}, optional=True)
    if found.get("difference") is not None:
        require(found["difference"], f"{path}, difference", {"accuracy": NUMBER})
        require(found["difference"], f"{path}, difference", {"standard_error": NUMBER}, optional=True)
    return found


def _name(path: Path, folder: Path) -> str:
    """A folder inside the run by its path from there; the run's own folder by its name."""
    return folder.resolve().name if path == folder else path.relative_to(folder).as_posix()
