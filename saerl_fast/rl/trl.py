"""A plan inside TRL: a config that keeps its order, and a guard that watches over the run."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from saerl_fast.curriculum.plan import BatchPlan
from saerl_fast.curriculum.trainer_check import dataset_problems
from saerl_fast.errors import MissingDependency, TrainerMismatchError

if TYPE_CHECKING:
    from trl import GRPOConfig

logger = logging.getLogger(__name__)


def grpo_config(plan: BatchPlan, *, recipe: str | None = None, force: bool = False, **settings: Any) -> GRPOConfig:
    """``trl.GRPOConfig(**plan.grpo_args(...))``, checked against the plan.

    Make it in the launched processes, where the number of processes is known. ``recipe`` and ``settings``
    are those of ``plan.grpo_args``, ``force`` that of ``plan.check``.
    """
    try:
        from trl import GRPOConfig
    except ImportError as error:
        raise MissingDependency("grpo_config wants the package trl: pip install 'saerl-fast[rl]'") from error
    config = GRPOConfig(**plan.grpo_args(recipe=recipe, **settings))
    plan.check(config, force=force)
    return config


class PlanGuard(TrainerCallback):  # type: ignore[misc]
    """Checks the trainer as it starts, in every process, with the settings and data it really has.

    ``GRPOTrainer(..., callbacks=[PlanGuard(plan)])``. Raises TrainerMismatchError before the first step.
    """

    def __init__(self, plan: BatchPlan, force: bool = False) -> None:
        self.plan = plan
        self.force = force

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.plan.check(args, force=self.force)
        dataset = getattr(kwargs.get("train_dataloader"), "dataset", None)
        if args.remove_unused_columns and "saerl_row" not in (getattr(dataset, "column_names", None) or []):
            logger.warning("remove_unused_columns is on: the columns of the plan are gone, its order is not checked")
            return
        problems = dataset_problems(self.plan, dataset)
        if problems:
            raise TrainerMismatchError("the trainer would not keep the plan's order:\n- " + "\n- ".join(problems))
