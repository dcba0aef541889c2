"""The order of a training run: the plan, the plan's prompts shuffled, or rows without a plan."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import numpy as np

from saerl_fast.curriculum.handoff import COLUMNS
from saerl_fast.curriculum.make import make_plan
from saerl_fast.curriculum.plan import BatchPlan
from saerl_fast.curriculum.policies import Policy
from saerl_fast.errors import InputError
from saerl_fast.rl.problems import Problems

logger = logging.getLogger(__name__)


def shuffle_plan(plan: BatchPlan, seed: int) -> BatchPlan:
    """The same prompts in each epoch (repeats that fill up a batch among them), in random order.

    The baseline of a plan: same rows, same number of batches, same budget.
    """
    rng = np.random.default_rng([seed, plan.steps])
    orders = [rng.permutation(plan.steps_per_epoch * plan.prompts_per_step) for _ in range(plan.epochs)]
    return _reorder(plan, np.stack(orders), Policy("shuffled", "any", 0.0, "random"), seed)


def plan_without_signals(problems: Problems, settings: Any, *, shuffled: bool, seed: int) -> BatchPlan:
    """Every row that can be posed and checked, in random order or in that of the file.

    settings: a GRPOConfig, which tells the prompts of a chunk and the number of epochs or steps.
    """
    size = settings.generation_batch_size // settings.num_generations
    reasons = [problems.lacks(place) for place in range(len(problems))]
    usable = sum(reason is None for reason in reasons)
    if usable < len(reasons):
        left_out = len(reasons) - usable
        logger.warning("train: %d of %d rows have no text or no answer and are left out", left_out, len(reasons))
    if usable < size:
        raise InputError(
            f"wanted at least {size} problems, the prompts of one generation chunk; got {usable}. "
            "Set a smaller per_device_train_batch_size or gradient_accumulation_steps, or more num_generations"
        )
    epochs = math.ceil(settings.num_train_epochs)
    if settings.max_steps > 0:
        per_chunk = settings.steps_per_generation * settings.num_iterations / settings.gradient_accumulation_steps
        epochs = math.ceil(settings.max_steps / (per_chunk * math.ceil(usable / size)))
    plan = make_plan(
        list(problems.ids),
        prompts_per_step=size,
        status=["ok" if reason is None else reason for reason in reasons],
        policy="random",
        epochs=max(1, epochs),
        seed=seed,
    )
    if shuffled:
        return plan
    rows = plan.rows.reshape(plan.epochs, -1)
    orders = np.lexsort((rows, plan.padded.reshape(plan.epochs, -1)))
    return _reorder(plan, orders, Policy("file_order", "any", 0.0, "random"), seed)


def _reorder(plan: BatchPlan, orders: Any, policy: Policy, seed: int) -> BatchPlan:
    """orders [epochs, prompts of an epoch]: places within each epoch."""
    rows = np.take_along_axis(plan.rows.reshape(plan.epochs, -1), orders, axis=1)
    padded = np.take_along_axis(plan.padded.reshape(plan.epochs, -1), orders, axis=1)
    return replace(
        plan, rows=rows.reshape(plan.rows.shape), padded=padded.reshape(plan.rows.shape), policy=policy, seed=seed
    )


def prompts_in_order(plan: BatchPlan, problems: Problems) -> Any:
    """A ``datasets.Dataset`` in the plan's order: prompt, saerl_place (row of the table) and the plan's columns.

    Raises PlanError where the plan is of another dataset, InputError for a planned row without text or answer.
    """
    from datasets import Dataset

    places = range(len(problems))
    texts = [problems.text(place) for place in places]
    if {type(text) for text in texts} - {type(None)} not in ({str}, {list}):
        raise InputError(f"column {problems.text_field!r}: wanted texts only, or lists of chat messages only")
    numbered = plan.ids.dtype != object and np.array_equal(plan.ids, np.arange(len(plan.ids)))
    by_position = numbered and (problems.id_field is None or isinstance(problems.ids[0], str))
    columns = {problems.text_field: texts, "saerl_id": list(problems.ids), "saerl_place": list(places)}
    ordered = plan.apply(Dataset.from_dict(columns), None if by_position else "saerl_id")
    for place in dict.fromkeys(ordered["saerl_place"][:]):
        reason = problems.lacks(place)
        if reason is not None:
            raise InputError(f"row {problems.ids[place]!r} of the plan has {reason}; leave it out of the plan")
    if problems.text_field != "prompt":
        ordered = ordered.rename_column(problems.text_field, "prompt")
    return ordered.select_columns(["prompt", "saerl_place", *COLUMNS])
