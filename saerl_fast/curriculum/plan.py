"""BatchPlan: which rows, in which order, in which batch, and why."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from saerl_fast.curriculum.policies import Policy
from saerl_fast.curriculum.validity import check_plan
from saerl_fast.errors import InputError

PARTIAL = ("pad", "drop", "error")


@dataclass(frozen=True, slots=True)
class Step:
    """One batch. All arrays have P entries: row numbers, ids, cluster labels, difficulty (NaN where the
    plan has none), and whether the row is a repeat that fills up a last batch."""

    number: int
    epoch: int
    rows: NDArray[np.int64]
    ids: NDArray[Any]
    clusters: NDArray[Any]
    difficulty: NDArray[np.float64]
    padded: NDArray[np.bool_]


@dataclass(frozen=True, eq=False, slots=True)
class BatchPlan:
    """S rows planned in T batches ("steps") of P prompts, epochs unrolled. Made by ``make_plan``.

    ids            [S] int64 or object (str), in the order of the dataset the plan was made from
    rows           [T, P] int64, row numbers (places in ids) of each batch
    padded         [T, P] bool, repeats that fill up the last batch of an epoch
    dropped        [epochs, d] int64, rows of a last batch that was cut off (partial="drop")
    codes          [S] int32, an index into cluster_labels; -1 for an unread row
    cluster_labels [K]
    difficulty     [S] float64 or None; higher is harder
    quality        [S] float64 or None; higher is better
    reasons        [S] uint8, an index into reason_names; 0 is "kept"
    threshold      the lowest quality kept, None without a quality filter
    fingerprint    of the dataset's content, or None

    In every epoch each kept row occurs exactly once, apart from what padded and dropped name: this and all
    shapes and ranges are checked when a plan is made or loaded (PlanError). The arrays are read-only.
    """

    ids: NDArray[Any]
    rows: NDArray[np.int64]
    padded: NDArray[np.bool_]
    dropped: NDArray[np.int64]
    codes: NDArray[np.int32]
    cluster_labels: tuple[int | str, ...]
    difficulty: NDArray[np.float64] | None
    quality: NDArray[np.float64] | None
    reasons: NDArray[np.uint8]
    reason_names: tuple[str, ...]
    threshold: float | None
    policy: Policy
    seed: int
    partial: str
    drop_lowest: float
    max_difficulty: float | None
    fingerprint: str | None

    def __post_init__(self) -> None:
        check_plan(self)
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    # ---- sizes

    def __len__(self) -> int:
        """Prompts in the plan: steps * prompts_per_step."""
        return int(self.rows.size)

    @property
    def steps(self) -> int:
        return int(self.rows.shape[0])

    @property
    def prompts_per_step(self) -> int:
        return int(self.rows.shape[1])

    @property
    def epochs(self) -> int:
        return int(self.dropped.shape[0])

    @property
    def steps_per_epoch(self) -> int:
        return self.steps // self.epochs

    @property
    def digest(self) -> str:
        """sha256 of the order and the ids: equal for plans that feed a trainer the same rows."""
        state = hashlib.sha256(ids_digest(self.ids).encode())
        state.update(np.array(self.rows.shape, dtype="<i8").tobytes())
        state.update(self.rows.astype("<i8").tobytes())
        return state.hexdigest()

    # ---- reading a plan

    @property
    def order(self) -> NDArray[np.int64]:
        """[T * P] int64, the row numbers in the order in which the trainer takes them."""
        return self.rows.ravel()

    def step(self, number: int) -> Step:
        """The batch of one step, counted from 0 over all epochs."""
        if not 0 <= number < self.steps:
            raise InputError(f"step: wanted 0 to {self.steps - 1}, got {number}")
        rows = self.rows[number]
        return Step(
            number=number,
            epoch=number // self.steps_per_epoch,
            rows=rows,
            ids=self.ids[rows],
            clusters=self.label_array()[self.codes[rows]],
            difficulty=self.difficulty_array()[rows],
            padded=self.padded[number],
        )

    def __iter__(self) -> Iterator[Step]:
        return (self.step(number) for number in range(self.steps))

    def columns(self) -> dict[str, NDArray[Any]]:
        """The plan as a table, one entry per planned prompt, in order: step, epoch, id, row, cluster,
        difficulty, quality, padded. NaN stands for what the plan does not know."""
        order = self.order
        step = np.repeat(np.arange(self.steps), self.prompts_per_step)
        quality = np.full(len(self.ids), np.nan) if self.quality is None else self.quality
        return {
            "step": step,
            "epoch": step // self.steps_per_epoch,
            "id": self.ids[order],
            "row": order,
            "cluster": self.label_array()[self.codes[order]],
            "difficulty": self.difficulty_array()[order],
            "quality": quality[order],
            "padded": self.padded.ravel(),
        }

    def to_rows(self) -> Iterator[dict[str, Any]]:
        """``columns`` as dictionaries of plain Python values, one per planned prompt."""
        columns = self.columns()
        values = zip(*(column.tolist() for column in columns.values()), strict=True)
        return (dict(zip(columns, row, strict=True)) for row in values)

    def why(self, row_id: int | str) -> dict[str, Any]:
        """What became of one row: kept or the reason it was left out, cluster, difficulty, quality, the
        quality threshold, and the steps it is in."""
        found = np.flatnonzero(self.ids == row_id)
        if not len(found):
            raise InputError(f"why: wanted an id of the plan, got {row_id!r}")
        row = int(found[0])
        code = int(self.codes[row])
        return {
            "id": row_id,
            "row": row,
            "kept": bool(self.reasons[row] == 0),
            "reason": self.reason_names[self.reasons[row]],
            "cluster": self.cluster_labels[code] if code >= 0 else None,
            "difficulty": None if self.difficulty is None else float(self.difficulty[row]),
            "quality": None if self.quality is None else float(self.quality[row]),
            "threshold": self.threshold,
            "steps": np.flatnonzero((self.rows == row).any(axis=1)).tolist(),
        }

    def label_array(self) -> NDArray[Any]:
        """[K] the cluster labels, int64 or object (str)."""
        if all(isinstance(label, int) for label in self.cluster_labels):
            return np.array(self.cluster_labels, dtype=np.int64)
        return np.array(self.cluster_labels, dtype=object)

    def difficulty_array(self) -> NDArray[np.float64]:
        """[S] float64, NaN everywhere for a plan made without difficulty."""
        return np.full(len(self.ids), np.nan) if self.difficulty is None else self.difficulty

    def summary(self) -> dict[str, Any]:
        """Counts and knobs, ready for JSON."""
        kept = self.reasons == 0
        left_out = np.bincount(self.reasons, minlength=len(self.reason_names))[1:].tolist()
        known = self.codes >= 0
        width = len(self.cluster_labels)
        lost = np.bincount(self.codes[known & ~kept], minlength=width).tolist()
        sizes = np.bincount(self.codes[kept], minlength=width).tolist()
        return {
            "policy": self.policy.name,
            "clusters_per_step": self.policy.clusters_per_step,
            "tail_swap": self.policy.tail_swap,
            "rows_swapped_per_step": self.policy.swapped(self.prompts_per_step),
            "order": self.policy.order,
            "rows": len(self.ids),
            "kept": int(kept.sum()),
            "left_out": {n: c for n, c in zip(self.reason_names[1:], left_out, strict=True) if c},
            "quality_threshold": self.threshold,
            "clusters": {
                str(label): {"kept": size, "left_out": gone}
                for label, size, gone in zip(self.cluster_labels, sizes, lost, strict=True)
            },
            "epochs": self.epochs,
            "steps": self.steps,
            "steps_per_epoch": self.steps_per_epoch,
            "prompts_per_step": self.prompts_per_step,
            "prompts": len(self),
            "partial": self.partial,
            "padded": int(self.padded.sum()),
            "dropped": int(self.dropped.size),
            "seed": self.seed,
            "digest": self.digest,
        }

    def __repr__(self) -> str:
        return (
            f"BatchPlan({self.policy.name}: {int((self.reasons == 0).sum())} of {len(self.ids)} rows, "
            f"{len(self.cluster_labels)} clusters, {self.epochs} epochs, "
            f"{self.steps} steps of {self.prompts_per_step} prompts)"
        )

    # ---- the bodies of these stand in files.py, handoff.py and trainer_check.py

    def save(self, folder: str | Path) -> Path:
        """Writes ``plan.json`` and ``plan.safetensors``. A folder with the same plan is left as it is; one
        with another plan is refused (PlanError)."""
        from saerl_fast.curriculum.files import save_plan

        return save_plan(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> BatchPlan:
        """Reads and checks a plan; raises FormatError, CorruptStoreError or PlanError."""
        from saerl_fast.curriculum.files import load_plan

        return load_plan(folder)

    def apply(self, dataset: Any, id_column: str | None = None) -> Any:
        """The rows of ``dataset`` in the plan's order, as a ``datasets.Dataset``: see ``handoff.apply_plan``."""
        from saerl_fast.curriculum.handoff import apply_plan

        return apply_plan(self, dataset, id_column)

    def grpo_args(self, *, recipe: str | None = None, world_size: int | None = None, **settings: Any) -> dict[str, Any]:
        """Settings for TRL's GRPOConfig that keep the plan's order: see ``handoff.grpo_args``."""
        from saerl_fast.curriculum.handoff import grpo_args

        return grpo_args(self, recipe=recipe, world_size=world_size, **settings)

    def check(self, config: Any, *, world_size: int | None = None, force: bool = False) -> tuple[str, ...]:
        """Raises TrainerMismatchError where the trainer would break the order: see ``trainer_check``."""
        from saerl_fast.curriculum.trainer_check import check_trainer

        return check_trainer(self, config, world_size=world_size, force=force)


def ids_digest(ids: NDArray[Any]) -> str:
    """sha256 of ids, their kind and their order."""
    if ids.dtype != object:
        return hashlib.sha256(b"int64\0" + ids.astype("<i8").tobytes()).hexdigest()
    state = hashlib.sha256(b"str\0")
    encoded = [value.encode("utf-8", "surrogatepass") for value in ids]
    state.update(np.array([len(value) for value in encoded], dtype="<i8").tobytes())
    state.update(b"".join(encoded))
    return state.hexdigest()
