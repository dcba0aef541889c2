"""The demo: SAERL from problems to a report, in a world whose truth is known.

Every station is the one that users call, and everything but the weights of the policy and its SAE is made on the spot.
What an earlier run has left in the folder is used again::

    OUT/  demo.json  problems.jsonl  held_out.jsonl  features/  sae.json  labels/  evaluation.json
          plan/  short_run.jsonl  short_plan/  grpo/shuffled/  grpo/plan/  report.html
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from saerl_fast.curriculum import BatchPlan, make_plan
from saerl_fast.demo.policy import LONGEST_ANSWER, POLICY, SAE_FOLDER
from saerl_fast.demo.problems import Problem, generate
from saerl_fast.demo.train_sae import CONTEXT
from saerl_fast.durable import read_object, replace
from saerl_fast.errors import InputError, JobMismatchError
from saerl_fast.extract.inputs import hash_file
from saerl_fast.extract.reader import make_reader
from saerl_fast.extract.stream import ActivationStream
from saerl_fast.features import SparseFeatures
from saerl_fast.featurizer import featurize
from saerl_fast.formats import load_sae
from saerl_fast.report import write_report
from saerl_fast.rl.label import difficulty_column, label, read_labels
from saerl_fast.rl.train import TrainConfig, TrainResult, train
from saerl_fast.sae import sanity
from saerl_fast.signals.evaluate import evaluate, format_table
from saerl_fast.signals.evaluate_table import KINDS
from saerl_fast.steer import Signals, steer, write_signals

Result = TypeVar("Result")

CLUSTERS = 8
ROLLOUTS = 8
PROMPTS_PER_STEP = 8
DROPPED = 0.05
SANITY_ROWS = 20_000
FEWEST_PROBLEMS, FEWEST_LABELS = 200, 50


@dataclass(frozen=True)
class Sizes:
    """problems are read and clustered; labelled of them get rollouts; the short GRPO takes steps batches of them,
    and is judged on held_out others."""

    problems: int = 4000
    labelled: int = 1200
    held_out: int = 400
    steps: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        if self.problems < FEWEST_PROBLEMS or not FEWEST_LABELS <= self.labelled <= self.problems:
            raise InputError(
                f"demo: wanted at least {FEWEST_PROBLEMS} problems, and from {FEWEST_LABELS} to all of them labelled "
                f"(with fewer there is nothing to hold out); got {self}"
            )
        if self.held_out < 1 or self.steps < 1:
            raise InputError(f"demo: wanted held_out >= 1 and steps >= 1; got {self}")
        if self.steps * PROMPTS_PER_STEP > (1 - DROPPED) * self.problems:
            raise InputError(f"demo: {self.steps} steps of {PROMPTS_PER_STEP} prompts are too many for {self.problems}")


def run_demo(out: Path, sizes: Sizes) -> Path:
    """Every station in turn; the path of the report."""
    out.mkdir(parents=True, exist_ok=True)
    _enter_settings(out, sizes)
    problems = _stage(f"1/8  {sizes.problems} problems from the generator", lambda: _problems(out, sizes))
    features = _stage("2/8  read by the policy, encoded by its SAE", lambda: _features(problems, out))
    _stage("3/8  does this SAE fit these texts?", lambda: _sanity(problems, out, sizes.seed))
    rates = _stage(
        f"4/8  {ROLLOUTS} answers of the policy to each of {sizes.labelled} problems",
        lambda: _labels(problems, features, out, sizes),
    )
    _stage("5/8  what the features know, beside the controls", lambda: _evaluate(problems, features, rates, out, sizes))
    _stage("6/8  clusters, difficulty, quality: the plan", lambda: _plan(problems, features, rates, out, sizes))
    for number, name in ((1, "shuffled"), (2, "plan")):
        _stage(
            f"7/8  GRPO, {sizes.steps} steps ({number} of 2: {name})",
            lambda name=name: _grpo(out, name, sizes.seed),  # type: ignore[misc]
        )
    return _stage("8/8  the report", lambda: _report(out))


def _stage(title: str, work: Callable[[], Result]) -> Result:
    print(f"\n== {title}", flush=True)
    started = time.monotonic()
    found = work()
    print(f"   {time.monotonic() - started:.0f} s", flush=True)
    return found


def _enter_settings(out: Path, sizes: Sizes) -> None:
    """A folder belongs to the settings and the weights it was started with."""
    weights = {name: hash_file(str(file)) for name, file in _weights().items()}
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in asdict(sizes).items())
    settings = {"command": f"saerl demo {options}", **asdict(sizes), "weights": weights}
    note = out / "demo.json"
    if note.exists() and read_object(note) != settings:
        raise JobMismatchError(f"{out} holds a demo with other settings ({note}); choose another --out, or remove it")
    replace(note, (json.dumps(settings, indent=1) + "\n").encode())


def _weights() -> dict[str, Path]:
    return {"policy": POLICY / "model.safetensors", "sae": SAE_FOLDER / "sae_weights.safetensors"}


def _problems(out: Path, sizes: Sizes) -> list[Problem]:
    problems = generate(sizes.problems, seed=sizes.seed)
    _write_table(out / "problems.jsonl", problems)
    _write_table(out / "held_out.jsonl", generate(sizes.held_out, split="held_out", seed=sizes.seed, defect_share=0))
    print(f"   for example: {problems[0].text} ({problems[0].answer})")
    return problems


def _write_table(path: Path, problems: Sequence[Problem]) -> None:
    replace(path, "".join(json.dumps(asdict(problem)) + "\n" for problem in problems).encode())


def _features(problems: Sequence[Problem], out: Path) -> SparseFeatures:
    table = out / "problems.jsonl"
    source = {"data": str(table.resolve()), "text_field": "text", "id_field": "id", "sha256": hash_file(str(table))}
    return featurize(
        [problem.text for problem in problems],
        POLICY,
        SAE_FOLDER,
        ids=[problem.id for problem in problems],
        columns=[
            {"answer": row.answer, "topic": row.topic, "level": row.level, "defect": row.defect} for row in problems
        ],
        source=source,
        keep_hidden=True,
        out=out / "features",
    )


def _sanity(problems: Sequence[Problem], out: Path, seed: int) -> None:
    """L0, explained variance and dead share of the SAE on tokens of these problems."""
    sae = load_sae(SAE_FOLDER)
    reader = make_reader(POLICY, sae)
    texts = [problem.text for problem in problems]
    rows = next(
        ActivationStream(
            texts, reader, batch_rows=SANITY_ROWS, buffer_rows=2 * SANITY_ROWS, max_length=CONTEXT, seed=seed
        )
    )
    found = sanity(sae, rows)
    written = asdict(found) | {"k": sae.k, "d_sae": sae.d_sae, "rows": len(rows)}
    replace(out / "sae.json", (json.dumps(written, indent=1) + "\n").encode())
    print(f"   explained variance {found.explained_variance:.2f}, L0 {found.l0:.1f}, dead {found.dead_share:.1%}")


def _labels(problems: Sequence[Problem], features: SparseFeatures, out: Path, sizes: Sizes) -> list[float | None]:
    """1 - pass rate for the labelled rows, None for the others."""
    labels = label(
        [asdict(problem) for problem in problems],
        str(POLICY),
        text_field="text",
        count=sizes.labelled,
        rollouts=ROLLOUTS,
        max_new_tokens=LONGEST_ANSWER,
        batch_size=64,
        seed=sizes.seed,
        out=out / "labels",
        source={"sha256": hash_file(str(out / "problems.jsonl"))},
    )
    mean = sum(row.pass_rate for row in labels) / len(labels)
    print(f"   mean pass rate {mean:.2f} (faulty problems among them)")
    return difficulty_column(read_labels(out / "labels"), list(features.ids))


def _checked(problems: Sequence[Problem], rates: Sequence[float | None]) -> list[float | None]:
    """Quality labels: somebody has looked at the labelled rows, and at no other."""
    return [None if rate is None else float(not row.defect) for row, rate in zip(problems, rates, strict=True)]


def _evaluate(
    problems: Sequence[Problem], features: SparseFeatures, rates: Sequence[float | None], out: Path, sizes: Sizes
) -> dict[str, Any]:
    found = evaluate(
        features.to_scipy(),
        hidden=features.hidden,
        texts=[problem.text for problem in problems],
        lengths=features.n_tokens,
        topic=[problem.topic for problem in problems],
        difficulty=rates,
        quality=["faulty" if problem.defect else "sound" for problem in problems],
        seed=sizes.seed,
    )
    found = _with_level(found, problems, features, sizes.seed)
    replace(out / "evaluation.json", json.dumps(found, indent=1).encode())
    print(format_table(found))
    scores = "; ".join(f"{KINDS[kind]} {score:.2f}" for kind, score in found["level"].items() if kind != "majority")
    print(f"   the true level, Spearman of probes fitted to it: {scores}")
    return found


def _with_level(
    found: dict[str, Any], problems: Sequence[Problem], features: SparseFeatures, seed: int
) -> dict[str, Any]:
    """The evaluation, and "level" in it: whether the true level can be read off the words, or off the features."""
    level = evaluate(
        features.to_scipy(),
        hidden=features.hidden,
        texts=[problem.text for problem in problems],
        lengths=features.n_tokens,
        difficulty=[problem.level for problem in problems],
        seed=seed,
    )
    return found | {
        "level": level["difficulty"],
        "details": found["details"] | {"level": level["details"]["difficulty"]},
    }


def _plan(
    problems: Sequence[Problem], features: SparseFeatures, rates: Sequence[float | None], out: Path, sizes: Sizes
) -> BatchPlan:
    """The plan of all rows, and one of as many of them, drawn at random, as the short run takes."""
    signals = steer(
        features,
        n_clusters=CLUSTERS,
        difficulty=rates,
        quality=_checked(problems, rates),
        seed=sizes.seed,
    )
    guessing = signals.held_out["quality"]["near_chance"]
    if guessing:
        print("   the quality probe cannot be told from guessing on held-out labels: nothing is filtered")
    dropped = 0.0 if guessing else DROPPED
    plan = _plan_of(list(range(len(problems))), features, signals, dropped, sizes.seed)
    plan.save(out / "plan")
    write_signals(signals, out / "plan", filtered=not guessing, features=out / "features")
    print(f"   {plan}")
    rows = _drawn(len(problems), dropped, sizes)
    _write_table(out / "short_run.jsonl", [problems[row] for row in rows])
    short = _plan_of(rows, features, signals, dropped, sizes.seed)
    short.save(out / "short_plan")
    print(f"   for the short run: {short}")
    return short


def _plan_of(rows: list[int], features: SparseFeatures, signals: Signals, dropped: float, seed: int) -> BatchPlan:
    return make_plan(
        [features.ids[row] for row in rows],
        prompts_per_step=PROMPTS_PER_STEP,
        clusters=signals.clusters[rows],
        difficulty=None if signals.difficulty is None else signals.difficulty[rows],
        quality=None if signals.quality is None else signals.quality[rows],
        status=[features.status[row] for row in rows],
        policy="default",
        drop_lowest=dropped,
        partial="drop",
        seed=seed,
    )


def _drawn(problems: int, dropped: float, sizes: Sizes) -> list[int]:
    """Rows for the short run, in the order of the table: enough that ``steps`` batches are left after the filter."""
    wanted = int(np.ceil(sizes.steps * PROMPTS_PER_STEP / (1 - dropped)))
    return sorted(int(row) for row in np.random.default_rng(sizes.seed).permutation(problems)[:wanted])


def _grpo(out: Path, name: str, seed: int) -> TrainResult:
    """GRPO with the plan, or with the same prompts shuffled; ``saerl train --config`` with these keys does the same."""
    config = TrainConfig(
        model=str(POLICY),
        data=str(out / "short_run.jsonl"),
        out=str(out / "grpo" / name),
        text_field="text",
        plan=str(out / "short_plan"),
        shuffled=name == "shuffled",
        eval=str(out / "held_out.jsonl"),
        eval_rollouts=2,
        eval_batch_size=128,
        seed=seed,
        grpo={
            "num_generations": 8,
            "per_device_train_batch_size": 8 * PROMPTS_PER_STEP,
            "max_completion_length": LONGEST_ANSWER,
            "learning_rate": 1e-4,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 3,
            "gradient_checkpointing": False,
            "save_steps": 20,
            "save_total_limit": 1,
            "report_to": "none",
        },
    )
    found = train(config)
    if found.eval is not None and found.eval["after"] is not None:
        before, after = found.eval["before"], found.eval["after"]
        print(f"   held-out accuracy {before['accuracy']:.3f} -> {after['accuracy']:.3f} (n = {before['n']})")
    return found


def _report(out: Path) -> Path:
    path = write_report(out, topic="topic", level="level", defect="defect")
    print(f"   {path}")
    return path
