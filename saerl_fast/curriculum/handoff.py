"""A plan handed to TRL: the ordered dataset, and the settings that keep its order.

TRL's GRPOTrainer takes prompts in chunks of P = generation_batch_size // num_generations, in the order of
the dataset when ``shuffle_dataset=False``. So the order is put into the dataset itself: it then survives
resuming, several processes, and every generation backend. Nothing here imports trl.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from saerl_fast.curriculum.inputs import read_ids
from saerl_fast.errors import DtypeError, InputError, MissingDependency, PlanError, TrainerMismatchError

if TYPE_CHECKING:
    from saerl_fast.curriculum.plan import BatchPlan

logger = logging.getLogger(__name__)

GATHERED_ROWS = 10_000
COLUMNS = ("saerl_row", "saerl_step", "saerl_cluster", "saerl_difficulty")

RECIPES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo"},
    # arXiv 2503.14476; TRL has no dynamic sampling, so that part of DAPO is not here
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28, "mask_truncated_completions": True, "beta": 0.0},
}

DEFAULT_NUM_GENERATIONS = 8
DEFAULT_DEVICE_BATCH = 8


def apply_plan(plan: BatchPlan, dataset: Any, id_column: str | None = None) -> Any:
    """``dataset`` physically in the plan's order, epochs unrolled: len(plan) rows.

    id_column  the column that holds the plan's ids; the dataset may then be in any order. Without it the
               plan's ids must be the row numbers 0, 1, ..., and the dataset the one the plan was made
               from, in its order (told by its length, and by its content where the plan has a fingerprint).

    Adds the columns saerl_row (row number in the dataset the plan was made from), saerl_step (batch),
    saerl_cluster (label) and saerl_difficulty (NaN where the plan has none); reward functions receive them.
    Raises PlanError where the dataset is not the plan's.
    """
    try:
        from datasets import Dataset
    except ImportError as error:
        raise MissingDependency("apply wants the package datasets: pip install 'saerl-fast[rl]'") from error
    if not isinstance(dataset, Dataset):
        raise DtypeError(
            f"apply: wanted a datasets.Dataset, got {type(dataset).__name__}. "
            "Choose a split of a DatasetDict; turn a stream into a Dataset with Dataset.from_generator"
        )
    places = _by_position(plan, dataset) if id_column is None else _by_id(plan, dataset, id_column)
    stale = [name for name in COLUMNS if name in dataset.column_names]
    if stale:
        logger.info("apply: columns replaced: %s", ", ".join(stale))
        dataset = dataset.remove_columns(stale)
    table = _gather(dataset, places[plan.order])
    ordered = Dataset(table, info=dataset.info.copy(), split=dataset.split)
    columns = plan.columns()
    for name in COLUMNS:
        ordered = ordered.add_column(name, columns[name.removeprefix("saerl_")].tolist())
    return ordered


def _gather(dataset: Any, places: NDArray[np.int64]) -> Any:
    """The rows at ``places`` as one Arrow table in memory.

    Block by block: no column of a block reaches Arrow's limit of 2 GiB per string array. (``select`` with
    ``flatten_indices`` does the same, but takes time quadratic in the rows where a column holds messages.)
    """
    import pyarrow

    arrow = dataset.with_format("arrow")
    blocks = [
        arrow[places[start : start + GATHERED_ROWS]].combine_chunks() for start in range(0, len(places), GATHERED_ROWS)
    ]
    return pyarrow.concat_tables(blocks)


def _by_position(plan: BatchPlan, dataset: Any) -> NDArray[np.int64]:
    count = len(plan.ids)
    if plan.ids.dtype == object or not np.array_equal(plan.ids, np.arange(count)):
        raise PlanError(
            f"apply: the plan knows its rows by ids such as {plan.ids[0]!r}, not by row number; "
            'name the column that holds them: plan.apply(dataset, id_column="...")'
        )
    if len(dataset) != count:
        raise PlanError(f"apply: the plan was made from {count} rows, this dataset has {len(dataset)}")
    if plan.fingerprint is None:
        logger.warning("apply: the plan has no ids and no fingerprint; only the number of rows was compared")
        return np.arange(count)
    column = plan.fingerprint.rpartition(":")[0]
    if column not in dataset.column_names:
        raise PlanError(f"apply: wanted the column {column!r} the plan was made from; got {dataset.column_names}")
    found = fingerprint(dataset[column][:], column)
    if found != plan.fingerprint:
        raise PlanError(
            f"apply: the column {column!r} is not the one the plan was made from: "
            f"wanted content {plan.fingerprint}, got {found}. Use that dataset, or make a new plan"
        )
    return np.arange(count)


def _by_id(plan: BatchPlan, dataset: Any, id_column: str) -> NDArray[np.int64]:
    """[S] the place in the dataset of each row of the plan; -1 for a row that was left out and is not there."""
    if id_column not in dataset.column_names:
        raise PlanError(f"apply: wanted the id column {id_column!r}; got columns {dataset.column_names}")
    try:
        there = read_ids(dataset[id_column][:])
    except (InputError, DtypeError) as error:
        raise PlanError(f"apply: column {id_column!r}: {error}") from error
    place_of = {value: place for place, value in enumerate(there.tolist())}
    known = plan.ids.tolist()
    unknown = place_of.keys() - set(known)
    if unknown:
        raise PlanError(f"apply: {len(unknown)} ids of this dataset are not in the plan: {_some(unknown)}")
    places = np.array([place_of.get(value, -1) for value in known], dtype=np.int64)
    missing = plan.ids[(places < 0) & (plan.reasons == 0)].tolist()
    if missing:
        raise PlanError(f"apply: {len(missing)} ids of the plan are not in this dataset: {_some(missing)}")
    return places


def _some(values: Any) -> str:
    return ", ".join(repr(value) for value in sorted(values, key=str)[:5])


def fingerprint(values: Any, column: str) -> str:
    """``column:sha256`` of a column of strings (or chat messages) in its order; None counts as itself, not as "".

    Give it to ``make_plan(fingerprint=...)`` and ``apply`` will tell the dataset by this column. It depends
    on the content alone: not on the machine, the file or the version of datasets.
    """
    state = hashlib.sha256()
    for value in values:
        if isinstance(value, (list, dict)):
            value = json.dumps(value, sort_keys=True, ensure_ascii=True)
        if value is not None and not isinstance(value, str):
            raise DtypeError(f"fingerprint: wanted strings or messages in {column!r}, got {type(value).__name__}")
        encoded = b"" if value is None else value.encode("utf-8", "surrogatepass")
        state.update((-1 if value is None else len(encoded)).to_bytes(8, "little", signed=True))
        state.update(encoded)
    return f"{column}:{state.hexdigest()}"


def grpo_args(
    plan: BatchPlan, *, recipe: str | None = None, world_size: int | None = None, **settings: Any
) -> dict[str, Any]:
    """Keyword arguments for ``trl.GRPOConfig`` under which the trainer takes exactly the plan's batches.

    recipe      None leaves the loss to TRL; "grpo"; "dapo" (clip-higher, no KL, truncated completions
                masked; TRL has no dynamic sampling)
    world_size  processes; default: the environment's WORLD_SIZE (torchrun, accelerate launch), else 1
    settings    anything else for GRPOConfig. num_generations: default 8. per_device_train_batch_size:
                default the largest divisor of the batch up to 8. gradient_accumulation_steps: default
                what makes one optimizer step of one batch.

    Raises TrainerMismatchError where a setting contradicts the plan.
    """
    if recipe is not None and recipe not in RECIPES:
        raise InputError(f"recipe: wanted one of {', '.join(RECIPES)} or None; got {recipe!r}")
    processes = int(os.environ.get("WORLD_SIZE", "1")) if world_size is None else world_size
    generations = settings.get("num_generations", DEFAULT_NUM_GENERATIONS)
    batch = plan.prompts_per_step * generations
    if batch % processes:
        raise TrainerMismatchError(
            f"{plan.prompts_per_step} prompts with {generations} generations are {batch} completions, which do "
            f"not divide over {processes} processes; change num_generations or make a plan with another "
            "prompts_per_step"
        )
    share = batch // processes
    device_batch = settings.get("per_device_train_batch_size") or max(
        size for size in range(1, DEFAULT_DEVICE_BATCH + 1) if share % size == 0
    )
    if share % device_batch:
        raise TrainerMismatchError(
            f"per_device_train_batch_size: wanted a divisor of {share} ({plan.prompts_per_step} prompts x "
            f"{generations} generations / {processes} processes), got {device_batch}"
        )
    arguments = {
        "shuffle_dataset": False,
        "num_train_epochs": 1,
        "num_generations": generations,
        "generation_batch_size": batch,
        "per_device_train_batch_size": device_batch,
        "gradient_accumulation_steps": share // device_batch,
    }
    if settings.get("steps_per_generation") is not None:
        del arguments["generation_batch_size"]
    arguments |= RECIPES.get(recipe or "", {}) | settings
    _refuse_contradictions(plan, arguments, processes)
    return arguments


def _refuse_contradictions(plan: BatchPlan, arguments: dict[str, Any], processes: int) -> None:
    found = []
    if arguments["shuffle_dataset"]:
        found.append("shuffle_dataset: wanted False, got True")
    if arguments["num_train_epochs"] != 1:
        found.append(
            f"num_train_epochs: wanted 1, got {arguments['num_train_epochs']}; the epochs are unrolled in the "
            "plan: make_plan(epochs=...)"
        )
    wanted = plan.prompts_per_step * arguments["num_generations"]
    steps = arguments.get("steps_per_generation")
    got = arguments.get("generation_batch_size")
    if steps is not None:
        got = steps * arguments["per_device_train_batch_size"] * processes
    if got != wanted:
        found.append(f"generation_batch_size: wanted {wanted}, got {got}")
    if found:
        raise TrainerMismatchError("grpo_args would not keep the plan's order:\n- " + "\n- ".join(found))
