"""make_plan: columns in, BatchPlan out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saerl_fast.curriculum.batches import Epoch, deal, fill_last, mix, queue_up
from saerl_fast.curriculum.filtering import filter_rows
from saerl_fast.curriculum.inputs import Inputs, read_inputs, whole_number
from saerl_fast.curriculum.plan import PARTIAL, BatchPlan
from saerl_fast.curriculum.policies import ClustersPerStep, Policy, choose_policy
from saerl_fast.curriculum.rotation import rotate
from saerl_fast.errors import InputError, PlanError

logger = logging.getLogger(__name__)


def make_plan(
    ids: ArrayLike | Sequence[Any],
    *,
    prompts_per_step: int,
    clusters: ArrayLike | Sequence[Any] | None = None,
    difficulty: ArrayLike | None = None,
    quality: ArrayLike | None = None,
    status: Sequence[str] | NDArray[Any] | None = None,
    policy: str | Policy = "default",
    epochs: int = 1,
    seed: int = 0,
    drop_lowest: float = 0.0,
    max_difficulty: float | None = None,
    clusters_per_step: ClustersPerStep | None = None,
    tail_swap: float | None = None,
    order: str | None = None,
    partial: str = "pad",
    fingerprint: str | None = None,
) -> BatchPlan:
    """Which rows, in which order, in which batch.

    ids               [S], all integers or all strings, each once
    prompts_per_step  P, the prompts of one batch: TRL's generation_batch_size // num_generations
    clusters          [S] integers or names; needed by the policies saerl and stratified
    difficulty        [S], higher is harder; needed by the policies saerl and easy_to_hard
    quality           [S], higher is better; needed by drop_lowest
    status            [S] strings; rows that are not "ok", "truncated" or "windowed" stay out of the plan
    policy            a preset (default, saerl, stratified, easy_to_hard, random) or a Policy;
                      clusters_per_step, tail_swap and order turn single knobs of it
    epochs            unrolled in the plan; each has every kept row once
    drop_lowest       fraction of the rows, those lowest in quality, to leave out
    max_difficulty    rows harder than this stay out: the end of an easy-to-hard order
    partial           a last batch that is not full: "pad" with rows seen earliest, "drop", or "error"
    fingerprint       from ``curriculum.fingerprint``, so that ``apply`` can tell the dataset by content

    Same arguments, same plan; no global random state is read or changed.
    Raises InputError, DtypeError or NonFiniteError for bad columns, PlanError where partial="error" applies.
    """
    size = whole_number("prompts_per_step", prompts_per_step, 1)
    epoch_count = whole_number("epochs", epochs, 1)
    seed = whole_number("seed", seed, 0)
    if seed >= 2**63:
        raise InputError(f"seed: wanted a whole number below 2**63, got {seed}")
    if partial not in PARTIAL:
        raise InputError(f"partial: wanted one of {', '.join(PARTIAL)}; got {partial!r}")
    if fingerprint is not None and not (isinstance(fingerprint, str) and ":" in fingerprint):
        raise InputError(f"fingerprint: wanted what curriculum.fingerprint(column, name) returns, got {fingerprint!r}")
    chosen = choose_policy(
        policy, clusters_per_step, tail_swap, order, clustered=clusters is not None, graded=difficulty is not None
    )
    inputs = read_inputs(ids, clusters, difficulty, quality, status)
    kept = filter_rows(inputs, drop_lowest, max_difficulty)
    rows = np.flatnonzero(kept.reasons == 0)
    _check_size(len(rows), size, partial)
    unrolled = _unroll(inputs, rows, chosen, size, epoch_count, seed, partial)
    plan = BatchPlan(
        ids=inputs.ids,
        rows=np.concatenate([epoch.rows for epoch in unrolled]),
        padded=np.concatenate([epoch.padded for epoch in unrolled]),
        dropped=np.stack([epoch.dropped for epoch in unrolled]),
        codes=inputs.codes,
        cluster_labels=inputs.labels,
        difficulty=inputs.difficulty,
        quality=inputs.quality,
        reasons=kept.reasons,
        reason_names=kept.names,
        threshold=kept.threshold,
        policy=chosen,
        seed=seed,
        partial=partial,
        drop_lowest=float(drop_lowest),
        max_difficulty=None if max_difficulty is None else float(max_difficulty),
        fingerprint=fingerprint,
    )
    _report(plan)
    return plan


def _check_size(count: int, size: int, partial: str) -> None:
    if count < size:
        raise InputError(
            f"prompts_per_step: wanted at most {count}, the rows left to plan; got {size}. "
            "Use smaller batches or more rows"
        )
    if partial == "error" and count % size:
        raise PlanError(
            f'{count} rows do not fill batches of {size}: {count % size} are left over, and partial="error". '
            'Choose another prompts_per_step, or partial="pad" or "drop"'
        )


def _unroll(
    inputs: Inputs, rows: NDArray[np.int64], policy: Policy, size: int, epochs: int, seed: int, partial: str
) -> list[Epoch]:
    # the rotation is the plan's, the same in each epoch; what an epoch redraws is the order of equals,
    # the order inside each batch, and which neighbours exchange tails
    if policy.clusters_per_step == "any":
        codes = np.zeros_like(inputs.codes)
    else:
        present, compact = np.unique(inputs.codes[rows], return_inverse=True)
        codes = np.zeros_like(inputs.codes)
        codes[rows] = compact.astype(np.int32)
        if len(present) == 1:
            logger.warning("all %d rows have one cluster label; the rotation has nothing to rotate", len(rows))
    sizes = np.bincount(codes[rows]).astype(np.int64)
    turns = rotate(sizes, policy.runs(size), np.random.default_rng([seed, 0]))
    places = np.argsort(turns, kind="stable")
    unrolled = []
    for number in range(epochs):
        rng = np.random.default_rng([seed, number + 1])
        sequence = deal(queue_up(rows, codes, inputs.difficulty, policy.order, rng), places)
        epoch = fill_last(sequence, codes, size, partial)
        unrolled.append(mix(epoch, policy.swapped(size), number % 2, rng))
    return unrolled


def _report(plan: BatchPlan) -> None:
    pads, cut = int(plan.padded.sum()), plan.dropped.shape[1]
    if pads:
        logger.info("the last batch of each epoch is filled up: %d repeated rows in all", pads)
    if cut:
        logger.warning('partial="drop": %d rows of each of %d epochs are cut off', cut, plan.epochs)
    size = plan.prompts_per_step
    if plan.policy.tail_swap and plan.policy.swapped(size) == 0:
        logger.warning("tail_swap=%g of %d prompts is no whole row: nothing is swapped", plan.policy.tail_swap, size)
