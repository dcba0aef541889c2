"""Would this trainer keep the plan's order? Every reason why not, in one error."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from saerl_fast.errors import DtypeError, TrainerMismatchError

if TYPE_CHECKING:
    from saerl_fast.curriculum.plan import BatchPlan

logger = logging.getLogger(__name__)

NEEDED = (
    "shuffle_dataset",
    "num_train_epochs",
    "max_steps",
    "num_generations",
    "num_iterations",
    "generation_batch_size",
    "steps_per_generation",
    "gradient_accumulation_steps",
    "per_device_train_batch_size",
    "world_size",
)


def check_trainer(
    plan: BatchPlan, config: Any, *, world_size: int | None = None, force: bool = False
) -> tuple[str, ...]:
    """Raises TrainerMismatchError, naming every reason for which the trainer would break the plan.

    config      a trl.GRPOConfig, or a GRPOTrainer (then its dataset is checked too)
    world_size  processes of the run; default: those the config was made for
    force       lets several optimizer steps per batch through under a plan of one cluster per batch

    Returns (and logs as warnings) what breaks no order but should be known: a run that stops before the
    plan's end, several batches per optimizer step, batches used several times.
    """
    settings = getattr(config, "args", config)
    lacking = [name for name in NEEDED if not hasattr(settings, name)]
    if lacking:
        raise DtypeError(
            f"check: wanted a trl.GRPOConfig or a GRPOTrainer, got {type(config).__name__} without {', '.join(lacking)}"
        )
    problems = _order_problems(plan, settings, world_size)
    problems += _length_problems(plan, settings)
    if not force:
        problems += _pure_problems(plan, settings)
    if hasattr(config, "train_dataset"):
        problems += dataset_problems(plan, config.train_dataset)
    if problems:
        raise TrainerMismatchError("the trainer would not keep the plan's order:\n- " + "\n- ".join(problems))
    notes = _notes(plan, settings)
    for note in notes:
        logger.warning("plan.check: %s", note)
    return tuple(notes)


def _order_problems(plan: BatchPlan, settings: Any, world_size: int | None) -> list[str]:
    problems = []
    if settings.shuffle_dataset:
        problems.append("shuffle_dataset is on (TRL's default); set shuffle_dataset=False")
    if world_size is not None and world_size != settings.world_size:
        problems.append(
            f"the config was made for {settings.world_size} processes, the run has {world_size}; "
            "make the config inside the launched processes"
        )
    prompts = settings.generation_batch_size // settings.num_generations
    wanted = plan.prompts_per_step
    if prompts != wanted:
        problems.append(
            f"the trainer takes {prompts} prompts at a time ({settings.generation_batch_size} completions / "
            f"{settings.num_generations} generations), the plan's batches have {wanted}; "
            f"set generation_batch_size={wanted * settings.num_generations} "
            f"or make the plan with prompts_per_step={prompts}"
        )
        if len(plan) % prompts:
            problems.append(
                f"the last {len(plan) % prompts} of {len(plan)} prompts do not fill a chunk of {prompts}: "
                "TRL would drop them without a word"
            )
    if getattr(settings, "ignore_data_skip", False):
        problems.append("ignore_data_skip is on: a resumed run would start the plan again from its beginning")
    accelerator = getattr(settings, "accelerator_config", None)
    if getattr(accelerator, "split_batches", False):
        problems.append("accelerator_config.split_batches is on: chunks would be cut up; set it to False")
    return problems


def trainer_steps(plan: BatchPlan, settings: Any) -> int:
    """Optimizer steps in which a trainer with these settings goes through the plan once."""
    slices = int(plan.steps * settings.steps_per_generation * settings.num_iterations)
    return math.ceil(slices / int(settings.gradient_accumulation_steps))


def _length_problems(plan: BatchPlan, settings: Any) -> list[str]:
    if settings.max_steps > 0:
        steps = trainer_steps(plan, settings)
        if settings.max_steps > steps:
            return [
                f"max_steps={settings.max_steps} goes beyond the plan's {steps} optimizer steps: TRL would start "
                "it again; make the plan with more epochs"
            ]
        return []
    if settings.num_train_epochs > 1:
        return [
            f"num_train_epochs={settings.num_train_epochs:g} (TRL's default is 3) would go through the plan again; "
            "set num_train_epochs=1 and unroll the epochs in the plan: make_plan(epochs=...)"
        ]
    return []


def _pure_problems(plan: BatchPlan, settings: Any) -> list[str]:
    several = settings.steps_per_generation > settings.gradient_accumulation_steps
    if not (several and plan.policy.pure and len(plan.cluster_labels) > 1):
        return []
    return [
        f"one cluster per batch (policy {plan.policy.name!r}), and each batch feeds "
        f"{settings.steps_per_generation / settings.gradient_accumulation_steps:g} optimizer steps "
        f"(steps_per_generation={settings.steps_per_generation}, "
        f"gradient_accumulation_steps={settings.gradient_accumulation_steps}): runs of steps on one cluster "
        f"hurt training; set gradient_accumulation_steps={settings.steps_per_generation}, "
        "or use clusters_per_step=4, or check(..., force=True)"
    ]


def dataset_problems(plan: BatchPlan, dataset: Any) -> list[str]:
    """Why ``dataset`` is not the one that ``plan.apply`` returns; empty where it is."""
    advice = "train on plan.apply(dataset)"
    if not hasattr(dataset, "__len__"):
        return [f"the train dataset is a {type(dataset).__name__}, whose order cannot be checked; {advice}"]
    if len(dataset) != len(plan):
        return [f"the train dataset has {len(dataset)} rows, the plan {len(plan)} prompts; {advice}"]
    if "saerl_row" not in dataset.column_names:
        return [f"the train dataset has no column saerl_row; {advice}"]
    rows = np.asarray(dataset["saerl_row"][:], dtype=np.int64)
    wrong = np.flatnonzero(rows != plan.order)
    if len(wrong):
        return [
            f"the train dataset is in another order: prompt {wrong[0]} is row {rows[wrong[0]]}, the plan has "
            f"{plan.order[wrong[0]]}, and {len(wrong) - 1} more differ; {advice}, and shuffle nothing after it"
        ]
    return []


def _notes(plan: BatchPlan, settings: Any) -> list[str]:
    notes = []
    steps = trainer_steps(plan, settings)
    planned = steps if settings.max_steps > 0 else steps * min(settings.num_train_epochs, 1)
    stops = settings.max_steps if settings.max_steps > 0 else math.ceil(planned)
    if stops < steps:
        notes.append(f"the run stops after {stops} of the plan's {steps} optimizer steps")
    if settings.steps_per_generation < settings.gradient_accumulation_steps:
        notes.append(
            f"an optimizer step takes in {settings.gradient_accumulation_steps / settings.steps_per_generation:g} "
            "batches of the plan"
        )
    if settings.num_iterations > 1 and plan.policy.pure and len(plan.cluster_labels) > 1:
        notes.append(
            f"num_iterations={settings.num_iterations}: each batch, of one cluster, is used for "
            f"{settings.num_iterations} rounds in a row"
        )
    return notes
