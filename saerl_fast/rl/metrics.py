"""metrics.jsonl: one line per log of the trainer, kept through stops; and the bar that shows them."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback

from saerl_fast.curriculum.plan import BatchPlan
from saerl_fast.durable import disk_full, replace

logger = logging.getLogger(__name__)

NAMES = {
    "reward": "reward",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "frac_reward_zero_std",
    "loss": "loss",
    "learning_rate": "learning_rate",
    "completions/mean_length": "completion_length",
    "completions/clipped_ratio": "clipped_ratio",
}
"""TRL's name of a number and ours; what is not named here is kept under "trl"."""


class MetricsWriter(TrainerCallback):  # type: ignore[misc]
    """Appends to ``path`` at every log: step, seconds, rewards, and what the plan says about the steps since.

    Lines beyond the checkpoint that a run goes on from are dropped when it starts, so no step is there twice.
    """

    def __init__(self, path: Path, plan: BatchPlan, *, planned: bool) -> None:
        self.path = path
        self.plan = plan
        self.planned = planned
        self._written = 0
        self._before = 0.0
        self._began = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began, self._written = time.perf_counter(), state.global_step
        if not state.is_world_process_zero:
            return
        kept = [line for line in read_metrics(self.path) if line["step"] <= state.global_step]
        self._before = kept[-1]["seconds"] if kept else 0.0
        replace(self.path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs or "train_runtime" in logs or state.global_step <= self._written:
            return
        numbers = {name: _plain(value) for name, value in logs.items() if isinstance(value, (int, float))}
        line: dict[str, Any] = {
            "step": state.global_step,
            "seconds": round(self._before + time.perf_counter() - self._began, 3),
            **{ours: numbers.get(theirs) for theirs, ours in NAMES.items()},
        }
        line |= self._of_plan(range(self._written, state.global_step), args)
        line["trl"] = {name: value for name, value in sorted(numbers.items()) if name not in NAMES}
        self._written = state.global_step
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise disk_full(error, self.path) from error

    def _of_plan(self, steps: range, settings: Any) -> dict[str, Any]:
        """batches, and where the run has a plan: clusters (prompts of each) and difficulty (mean, lowest, highest)."""
        batches = batches_of(steps, settings, self.plan.steps)
        if not self.planned:
            return {"batches": batches}
        rows = self.plan.rows[batches].ravel()
        labels = self.plan.label_array()[self.plan.codes[rows]].tolist()
        difficulty = self.plan.difficulty_array()[rows]
        known = difficulty[np.isfinite(difficulty)]
        return {
            "batches": batches,
            "clusters": {
                str(label): count for label, count in sorted(Counter(labels).items(), key=lambda p: str(p[0]))
            },
            "difficulty": {"mean": float(known.mean()), "lowest": float(known.min()), "highest": float(known.max())}
            if len(known)
            else None,
        }


def batches_of(steps: range, settings: Any, count: int) -> list[int]:
    """The batches of the plan that optimizer steps (counted from 0) train on."""
    slices_per_batch = settings.steps_per_generation * settings.num_iterations
    first = steps.start * settings.gradient_accumulation_steps // slices_per_batch
    last = (steps.stop * settings.gradient_accumulation_steps - 1) // slices_per_batch
    return list(range(first, min(last + 1, count)))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last line cut off by a kill is left out. Empty where there is no file."""
    if not path.exists():
        return []
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            lines.append(json.loads(text))
        except ValueError:
            logger.warning("%s: line %d is not whole and is dropped", path, number)
    return lines


class Bar(TrainerCallback):  # type: ignore[misc]
    """One line of progress with the reward, in place of the trainer's own, which prints every log."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self._bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from tqdm.auto import tqdm

        off = not self.shown or args.disable_tqdm or not state.is_world_process_zero
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="train", unit="step", disable=off)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update(state.global_step - self._bar.n if not self._bar.disable else 1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self._bar is not None and logs and isinstance(logs.get("reward"), float):
            self._bar.set_postfix(reward=f"{logs['reward']:.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()


def _plain(value: float) -> float | None:
    """JSON knows no NaN."""
    return value if math.isfinite(value) else None
