"""train: TRL's GRPOTrainer on a model, a table, a plan and a verifier; killed anywhere, it goes on.

::

    OUT/  LOCK  run.json  policy.json  metrics.jsonl  checkpoint-N/ ...  model/
          eval/before/ eval/after/  eval.json  done.json

run.json comes first and names the run by everything that changes it. done.json comes last.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from saerl_fast import __version__
from saerl_fast.curriculum.plan import BatchPlan
from saerl_fast.durable import (
    digest,
    enter_manifest,
    naming_full_disk,
    read_object,
    sole_writer,
    sync_folder,
    write_once,
)
from saerl_fast.errors import InputError
from saerl_fast.extract.loading import load_tokenizer
from saerl_fast.rl.held_out import NAME as EVAL
from saerl_fast.rl.held_out import answer_held_out, write_eval
from saerl_fast.rl.label import Label
from saerl_fast.rl.problems import Problems, read_problems
from saerl_fast.rl.train_config import CHANGE_NOTHING, TrainConfig, grpo_settings, make_grpo_config
from saerl_fast.rl.verifier import Verifier, find_verifier

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
RUN, POLICY, METRICS, DONE, MODEL = "run.json", "policy.json", "metrics.jsonl", "done.json", "model"


@dataclass(frozen=True)
class TrainResult:
    """out: the run's folder; done: done.json; eval: eval.json or None; ran: False where it was finished before."""

    out: Path
    done: Mapping[str, Any]
    eval: Mapping[str, Any] | None
    ran: bool


@dataclass(frozen=True)
class _Run:
    """Everything of a run that is known before a model is loaded."""

    config: TrainConfig
    out: Path
    problems: Problems
    held_out: Problems | None
    verifier: Verifier
    plan: BatchPlan
    prompts: Any
    arguments: Any
    progress: bool


def train(config: TrainConfig, *, progress: bool = True) -> TrainResult:
    """One GRPO run, from its beginning or from its last checkpoint; a finished one is read.

    Held-out problems, where there are any, are answered before and after. See TrainConfig for the keys, the
    module for the files. Launched by torchrun or accelerate, the first process alone writes and evaluates.

    Raises InputError (unknown or contradicting settings, bad columns), PlanError (a plan of another
    dataset, settings that would break its order), VerifierError (with row and completion),
    JobMismatchError (``out`` holds another run) and the errors of the folder.
    """
    run = _prepare(config, progress)
    first = os.environ.get("RANK", "0") == "0"
    with sole_writer(run.out) if first else nullcontext():
        if first:
            enter_manifest(run.out / RUN, _manifest(run))
        if (run.out / DONE).exists():
            logger.info("train: %s is finished; nothing to do", run.out)
            return _result(run.out, ran=False)
        with _one_bar():
            return _go(run, first)


@contextmanager
def _one_bar() -> Iterator[None]:
    """transformers shows a bar for each file it reads or writes, in the middle of ours."""
    from transformers.utils import logging as reporting

    shown = reporting.is_progress_bar_enabled()
    reporting.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            reporting.enable_progress_bar()


def _prepare(config: TrainConfig, progress: bool) -> _Run:
    """Read and check everything that is cheap."""
    from saerl_fast.extract.inputs import read_table
    from saerl_fast.rl.order import prompts_in_order

    settings = grpo_settings(config)
    verifier = find_verifier(config.verifier)
    problems = read_problems(read_table(config.data), config.text_field, config.answer_field, config.id_field)
    held_out = None
    if config.eval is not None:
        rows = read_table(config.eval)
        id_field = config.id_field if any(config.id_field in row for row in rows) else None
        held_out = read_problems(rows, config.text_field, config.answer_field, id_field)
        _warn_of_overlap(problems, held_out)
    plan, arguments = _order(config, settings, problems)
    # a plan of another dataset is refused here, before anything of the run is written
    prompts = prompts_in_order(plan, problems)
    return _Run(config, Path(config.out), problems, held_out, verifier, plan, prompts, arguments, progress)


def _warn_of_overlap(problems: Problems, held_out: Problems) -> None:
    """Held-out accuracy on problems that are trained on says nothing."""
    trained = {digest(problems.text(place)) for place in range(len(problems))}
    shared = sum(digest(held_out.text(place)) in trained for place in range(len(held_out)))
    if shared:
        logger.warning("train: %d of %d held-out problems are also in the training table", shared, len(held_out))


def _order(config: TrainConfig, settings: dict[str, Any], problems: Problems) -> tuple[BatchPlan, Any]:
    """The plan the run follows and a GRPOConfig that keeps it."""
    from saerl_fast.curriculum.handoff import RECIPES
    from saerl_fast.rl.order import plan_without_signals, shuffle_plan

    if config.recipe is not None and config.recipe not in RECIPES:
        raise InputError(f"recipe: wanted one of {', '.join(RECIPES)}; got {config.recipe!r}")
    if config.plan is not None:
        plan = BatchPlan.load(config.plan)
        plan = shuffle_plan(plan, config.seed) if config.shuffled else plan
    else:
        # epochs are unrolled in the order, so that a run that goes on finds its place in any of them
        bare = make_grpo_config({"num_train_epochs": 1, **settings})
        plan = plan_without_signals(problems, bare, shuffled=config.shuffled is not False, seed=config.seed)
        settings = {**settings, "num_train_epochs": 1}
    arguments = make_grpo_config(settings, plan, config.recipe)
    plan.check(arguments, force=config.force)
    return plan, arguments


def _manifest(run: _Run) -> dict[str, Any]:
    config = asdict(run.config)
    planned = sorted(set(run.plan.order.tolist()))
    rows = [
        [row_id, run.problems.text(p), run.problems.rows[p][run.problems.answer_field]]
        for p, row_id in enumerate(run.problems.ids)
    ]
    held_out = None if run.held_out is None else digest([dict(row) for row in run.held_out.rows])
    return {
        "format_version": FORMAT_VERSION,
        "config": config,
        "prompts": {"rows": len(run.problems), "in_run": len(planned), "held_out": run.held_out and len(run.held_out)},
        "plan": run.plan.summary(),
        "steps": _steps(run),
        "fingerprint": {
            "model": run.config.model,
            "data": digest(rows),
            "order": run.plan.digest,
            "verifier": run.verifier.name,
            "held_out": held_out,
            "eval_rollouts": run.config.eval_rollouts,
            "recipe": run.config.recipe,
            "seed": run.config.seed,
            "grpo": {name: value for name, value in sorted(run.config.grpo.items()) if name not in CHANGE_NOTHING},
        },
        "versions": versions(),
    }


def _steps(run: _Run) -> int:
    from saerl_fast.curriculum.trainer_check import trainer_steps

    return int(run.arguments.max_steps) if run.arguments.max_steps > 0 else trainer_steps(run.plan, run.arguments)


def versions() -> dict[str, str]:
    """Versions of what a result may depend on, and the machine."""
    names = ("torch", "transformers", "trl", "accelerate", "datasets")
    found = {name: metadata.version(name) for name in names}
    return {"saerl_fast": __version__, "python": platform.python_version(), "machine": platform.machine(), **found}


def _go(run: _Run, first: bool) -> TrainResult:
    """Before, training, after; whatever is there from an earlier session is not done again."""
    before: Sequence[Label] | None = None
    if (run.out / MODEL).is_dir():
        model, tokenizer = _load_trained(run.out / MODEL)
        before = _answers(run, None, None, "before") if first else None
    else:
        trainer = _make_trainer(run)
        model, tokenizer = trainer.model, trainer.processing_class
        if first:
            from saerl_fast.rl.rollout import fingerprint_policy

            enter_manifest(run.out / POLICY, {"fingerprint": fingerprint_policy(model, tokenizer)})
            before = _answers(run, model, tokenizer, "before")
        trainer.accelerator.wait_for_everyone()
        checkpoint = last_checkpoint(run.out, clear=first, only_models=run.arguments.save_only_model)
        with naming_full_disk(run.out):
            trainer.train(resume_from_checkpoint=checkpoint)
            _save(trainer, run.out)
    if first:
        after = _answers(run, model, tokenizer, "after")
        if run.held_out is not None and before is not None:
            write_eval(run.out / EVAL, run.config, run.held_out, before, after)
        _finish(run)
    return _result(run.out, ran=True)


def _answers(run: _Run, model: Any, tokenizer: Any, when: str) -> list[Label] | None:
    """The held-out answers of one moment; read where they are there."""
    from saerl_fast.rl.label import read_labels

    if run.held_out is None:
        return None
    folder = run.out / "eval" / when
    if model is None:
        return read_labels(folder)
    logger.info("train: held-out problems, %s", when)
    labels = answer_held_out(
        run.held_out,
        model,
        tokenizer,
        run.verifier,
        run.config,
        max_new_tokens=run.arguments.max_completion_length,
        folder=folder,
        progress=run.progress,
    )
    if when == "before":
        write_eval(run.out / EVAL, run.config, run.held_out, labels, None)
    return labels


def _make_trainer(run: _Run) -> Any:
    from transformers import PrinterCallback, ProgressCallback
    from trl import GRPOTrainer

    from saerl_fast.rl.metrics import Bar, MetricsWriter
    from saerl_fast.rl.trl import PlanGuard

    planned = run.config.plan is not None
    callbacks = [
        PlanGuard(run.plan, force=run.config.force),
        MetricsWriter(run.out / METRICS, run.plan, planned=planned),
        Bar(run.progress),
    ]
    try:
        trainer = GRPOTrainer(
            run.config.model,
            reward_of(run.verifier, run.problems),
            args=run.arguments,
            train_dataset=run.prompts,
            processing_class=load_tokenizer(run.config.model, truncation_side="left", padding_side="left"),
            callbacks=callbacks,
        )
    except (OSError, InputError) as error:
        raise InputError(
            f"model: cannot load a causal LM and its tokenizer from {run.config.model!r}: {error}"
        ) from error
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    return trainer


def reward_of(verifier: Verifier, problems: Problems) -> Any:
    """A reward function in TRL's form; it finds the row of each completion by the column saerl_place."""

    def verified(completions: Sequence[Any], saerl_place: Sequence[int], **columns: Any) -> list[float]:
        return [
            verifier.score(_text(completion), problems.rows[place], problems.answer_field, problems.ids[place])
            for completion, place in zip(completions, saerl_place, strict=True)
        ]

    return verified


def _text(completion: Any) -> str:
    """Of a completion, plain or chat."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


def last_checkpoint(out: Path, *, clear: bool = True, only_models: bool = False) -> str | None:
    """The newest whole checkpoint folder, None where there is none.

    The trainer writes trainer_state.json last; a folder without it was cut off, and is removed (``clear``).
    only_models: checkpoints hold no optimizer (save_only_model), so there is nothing to go on from.
    """
    found: dict[int, Path] = {}
    for folder in out.glob("checkpoint-*"):
        number = folder.name.removeprefix("checkpoint-")
        if not number.isdigit():
            continue
        if _is_whole(folder):
            found[int(number)] = folder
        elif clear:
            logger.warning("train: %s is not whole and is removed", folder)
            shutil.rmtree(folder)
    if not found:
        return None
    if only_models:
        logger.warning("train: save_only_model leaves nothing to go on from; the run starts again")
        return None
    newest = found[max(found)]
    logger.info("train: going on from %s", newest)
    return str(newest)


def _is_whole(checkpoint: Path) -> bool:
    try:
        return isinstance(json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8")), dict)
    except (FileNotFoundError, ValueError):
        return False


def _save(trainer: Any, out: Path) -> None:
    """The trained model under OUT/model, there whole or not at all."""
    part = out / f"{MODEL}.part"
    trainer.save_model(str(part))
    trainer.accelerator.wait_for_everyone()
    if trainer.accelerator.is_main_process:
        os.replace(part, out / MODEL)
        sync_folder(out)


def _load_trained(folder: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").to(device)
    return model.eval(), load_tokenizer(folder)


def _finish(run: _Run) -> None:
    from saerl_fast.rl.metrics import read_metrics

    lines = read_metrics(run.out / METRICS)
    done = {"steps": _steps(run), "seconds": lines[-1]["seconds"] if lines else None, "versions": versions()}
    write_once(run.out / DONE, (json.dumps(done, indent=1) + "\n").encode())


def _result(out: Path, *, ran: bool) -> TrainResult:
    done = read_object(out / DONE) if (out / DONE).exists() else {}
    held_out = read_object(out / EVAL) if (out / EVAL).exists() else None
    return TrainResult(out, done, held_out, ran)


__all__ = ["TrainConfig", "TrainResult", "last_checkpoint", "reward_of", "train", "versions"]
