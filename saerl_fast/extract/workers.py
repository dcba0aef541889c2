"""Which share of a job this process computes: said by the user, or by the launcher that started it."""

from __future__ import annotations

from collections.abc import Mapping

from saerl_fast.errors import InputError
from saerl_fast.extract.job import WHOLE, Part

_RANK = ("RANK", "WORLD_SIZE")
_SLURM = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT")


def choose_part(asked: str | None, environment: Mapping[str, str]) -> tuple[Part, str]:
    """The share, and why. What was asked for wins; then RANK and WORLD_SIZE; then a Slurm array.

    The tasks of a Slurm array are counted from SLURM_ARRAY_TASK_MIN in steps of SLURM_ARRAY_TASK_STEP. Raises
    InputError for half a pair, for numbers that are none, and where both launchers are there.
    """
    if asked is not None:
        return Part.parse(asked), f"--shard {asked}"
    ranked, slurm = _pair(environment, *_RANK), _pair(environment, *_SLURM)
    if ranked is not None and slurm is not None and ranked[1] > 1 and slurm[1] > 1:
        raise InputError("RANK/WORLD_SIZE and a Slurm array both name a share; say which is meant with --shard i/n")
    if ranked is not None and ranked[1] > 1:
        return Part(*ranked), f"RANK={ranked[0]} of WORLD_SIZE={ranked[1]}; --shard 0/1 for all of it"
    if slurm is not None and slurm[1] > 1:
        first, step = _number(environment, "SLURM_ARRAY_TASK_MIN", 0), _number(environment, "SLURM_ARRAY_TASK_STEP", 1)
        index, rest = divmod(slurm[0] - first, max(1, step))
        if rest:
            raise InputError(f"SLURM_ARRAY_TASK_ID={slurm[0]} is not {first} plus steps of {step}; pass --shard i/n")
        return Part(index, slurm[1]), f"Slurm array task {slurm[0]} of {slurm[1]}; --shard 0/1 for all of it"
    return WHOLE, "all of it: no --shard, and no launcher with more than one process"


def _pair(environment: Mapping[str, str], index: str, count: str) -> tuple[int, int] | None:
    present = [name for name in (index, count) if environment.get(name)]
    if not present:
        return None
    if len(present) == 1:
        raise InputError(f"{present[0]} is set, but not {count if present[0] == index else index}; pass --shard i/n")
    return _number(environment, index, 0), _number(environment, count, 1)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isdecimal():
        raise InputError(f"{name}={text!r:.40} is not a whole number; pass --shard i/n")
    return int(text)
