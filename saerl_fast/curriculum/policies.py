"""The policies: how the rows of a plan are grouped into batches and ordered.

========================  =================  =========  ============
preset                    clusters_per_step  tail_swap  order
========================  =================  =========  ============
``default``               4                  0.125      easy_to_hard
``saerl``                 1                  0.125      easy_to_hard
``stratified``            "all"              0          easy_to_hard
``easy_to_hard``          "any"              0          easy_to_hard
``random``                "any"              0          random
========================  =================  =========  ============

``saerl`` is the form of the paper (arXiv 2605.27354): one cluster per batch, easy to hard inside each
cluster, the tails of neighbouring batches exchanged. The default mixes four clusters, because a run of
optimizer steps on one cluster hurts when the trainer takes several steps per batch. Where no clusters or
no difficulties are given, ``default`` does without them and says so.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from saerl_fast.errors import InputError

ClustersPerStep: TypeAlias = int | Literal["all", "any"]

logger = logging.getLogger(__name__)

ORDERS = ("easy_to_hard", "hard_to_easy", "random")


@dataclass(frozen=True, slots=True)
class Policy:
    """How batches are made.

    name               the preset, with "+" behind it where a knob was turned
    clusters_per_step  how many runs of one cluster make a batch; "all": every batch holds the clusters in
                       proportion; "any": clusters play no part
    tail_swap          the fraction of a batch that is exchanged with its neighbour, 0 to 0.5
    order              of the rows inside a cluster: easy_to_hard, hard_to_easy or random
    """

    name: str
    clusters_per_step: ClustersPerStep
    tail_swap: float
    order: str

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise InputError(f"name: wanted a string, got {self.name!r}")
        _check_clusters_per_step(self.clusters_per_step)
        swap = self.tail_swap
        if isinstance(swap, bool) or not isinstance(swap, (int, float)) or not math.isfinite(swap):
            raise InputError(f"tail_swap: wanted a number from 0 to 0.5, got {swap!r}")
        if not 0 <= swap <= 0.5:
            raise InputError(f"tail_swap: wanted a fraction of the batch from 0 to 0.5, got {swap}")
        if self.order not in ORDERS:
            raise InputError(f"order: wanted one of {', '.join(ORDERS)}; got {self.order!r}")

    @property
    def pure(self) -> bool:
        """Each batch is one cluster (but for the exchanged tail)."""
        return self.clusters_per_step == 1

    def runs(self, prompts_per_step: int) -> list[int]:
        """Lengths of the runs of one cluster that make a batch; they sum to ``prompts_per_step``."""
        if self.clusters_per_step == "any":
            return [prompts_per_step]
        wanted = prompts_per_step if self.clusters_per_step == "all" else self.clusters_per_step
        count = min(wanted, prompts_per_step)
        return [prompts_per_step // count + (run < prompts_per_step % count) for run in range(count)]

    def swapped(self, prompts_per_step: int) -> int:
        """Rows of each batch that the tail swap exchanges: tail_swap * prompts_per_step, rounded half up."""
        return min(int(self.tail_swap * prompts_per_step + 0.5), prompts_per_step // 2)


def _check_clusters_per_step(value: object) -> None:
    if value in ("all", "any"):
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f'clusters_per_step: wanted a whole number from 1 up, "all" or "any"; got {value!r}')


PRESETS: dict[str, Policy] = {
    policy.name: policy
    for policy in (
        Policy("default", 4, 0.125, "easy_to_hard"),
        Policy("saerl", 1, 0.125, "easy_to_hard"),
        Policy("stratified", "all", 0.0, "easy_to_hard"),
        Policy("easy_to_hard", "any", 0.0, "easy_to_hard"),
        Policy("random", "any", 0.0, "random"),
    )
}


def choose_policy(
    policy: str | Policy,
    clusters_per_step: ClustersPerStep | None = None,
    tail_swap: float | None = None,
    order: str | None = None,
    *,
    clustered: bool = True,
    graded: bool = True,
) -> Policy:
    """A preset by name, or a Policy of your own, with single knobs turned; None leaves a knob as it is.

    clustered and graded say whether cluster labels and difficulties are there. ``default`` makes do without
    them, ``stratified`` without difficulties, and a line of log says so; anything else that needs what is
    not there is an InputError.
    """
    if isinstance(policy, str):
        if policy not in PRESETS:
            raise InputError(f"policy: wanted one of {', '.join(PRESETS)}; got {policy!r}")
        policy = PRESETS[policy]
    if policy == PRESETS["default"] and not clustered and clusters_per_step is None and tail_swap is None:
        logger.warning("no clusters given: they play no part in this plan")
        clusters_per_step, tail_swap = "any", 0.0
    if policy.name in ("default", "stratified") and not graded and order is None:
        logger.warning("no difficulty given: the order is random")
        order = "random"
    turned = replace(
        policy,
        clusters_per_step=policy.clusters_per_step if clusters_per_step is None else clusters_per_step,
        tail_swap=policy.tail_swap if tail_swap is None else tail_swap,
        order=policy.order if order is None else order,
    )
    _check_needs(turned, clustered, graded)
    return policy if turned == policy else replace(turned, name=turned.name.rstrip("+") + "+")


def _check_needs(policy: Policy, clustered: bool, graded: bool) -> None:
    if policy.clusters_per_step != "any" and not clustered:
        raise InputError(
            f'policy "{policy.name}" wants clusters, got none; pass clusters=..., '
            'or choose policy="easy_to_hard" or "random"'
        )
    if policy.order != "random" and not graded:
        raise InputError(f'order "{policy.order}" wants difficulty, got none; pass difficulty=..., or order="random"')
    if policy.clusters_per_step == "any" and policy.tail_swap:
        raise InputError(f'tail_swap: wanted 0 where clusters play no part ("any"), got {policy.tail_swap}')
