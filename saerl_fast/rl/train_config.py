"""What a training run is asked to do, checked before anything heavy is loaded."""

from __future__ import annotations

import dataclasses
import difflib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from saerl_fast.errors import InputError, MissingDependency, SaerlError

if TYPE_CHECKING:
    from trl import GRPOConfig

    from saerl_fast.curriculum.plan import BatchPlan

logger = logging.getLogger(__name__)

RESERVED = {
    "output_dir": "it is `out`",
    "resume_from_checkpoint": "a run that was stopped goes on from its last checkpoint by itself",
}
CHANGE_NOTHING = frozenset(
    {
        "save_steps", "save_strategy", "save_total_limit", "logging_steps", "logging_strategy", "logging_first_step",
        "logging_dir", "disable_tqdm", "report_to", "run_name", "project", "log_level", "log_completions",
        "num_completions_to_print", "dataloader_num_workers", "dataloader_pin_memory",
    }
)  # fmt: skip
"""Settings of GRPOConfig that may differ when a run goes on: what is trained does not depend on them."""


@dataclass(frozen=True)
class TrainConfig:
    """The keys of ``saerl train --config``.

    model         the policy: a folder or a hub id
    data          table of problems (.jsonl, .jsonl.gz, .csv, .parquet, hub id)
    out           folder of the run
    text_field    column of prompts: texts or lists of chat messages; answer_field: of answers; id_field: of
                  ids (default: the column id where it names every row once, else row numbers)
    plan          folder of a plan. Without one: random order, or that of the file with shuffled=False
    shuffled      with a plan: the baseline, the plan's own prompts in random order, same steps and budget
    verifier      "math" or "module:function"
    recipe, force those of ``grpo_config``
    eval          table of held-out problems, answered before and after; columns as in data
    eval_rollouts "greedy" (one completion, temperature 0), or a number of completions at temperature 1
    eval_by       columns of the held-out table for which accuracy is also told apart
    eval_batch_size  completions made at once
    seed          of the order, the held-out completions and (unless grpo has one) of GRPOConfig
    grpo          everything else, handed to trl.GRPOConfig as it is
    """

    model: str
    data: str
    out: str
    text_field: str = "problem"
    answer_field: str = "answer"
    id_field: str | None = None
    plan: str | None = None
    shuffled: bool | None = None
    verifier: str = "math"
    recipe: str | None = None
    force: bool = False
    eval: str | None = None
    eval_rollouts: int | str = "greedy"
    eval_by: tuple[str, ...] = ("topic", "level")
    eval_batch_size: int = 64
    seed: int = 0
    grpo: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("model", "data", "out", "text_field", "answer_field", "verifier"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise InputError(f"{name}: wanted text; got {getattr(self, name)!r}")
        if self.shuffled not in (None, True, False):
            raise InputError(f"shuffled: wanted true or false; got {self.shuffled!r}")
        if type(self.seed) is not int or self.seed < 0:
            raise InputError(f"seed: wanted a whole number from 0 up; got {self.seed!r}")
        rollouts = self.eval_rollouts
        if rollouts != "greedy" and (type(rollouts) is not int or rollouts < 1):
            raise InputError(f'eval_rollouts: wanted "greedy" or a whole number from 1 up; got {rollouts!r}')
        if type(self.eval_batch_size) is not int or self.eval_batch_size < 1:
            raise InputError(f"eval_batch_size: wanted a whole number from 1 up; got {self.eval_batch_size!r}")
        if not isinstance(self.grpo, Mapping):
            raise InputError(f"grpo: wanted a mapping of settings for GRPOConfig; got {type(self.grpo).__name__}")

    @staticmethod
    def from_mapping(values: Mapping[str, Any]) -> TrainConfig:
        """From the content of a YAML file. Raises InputError that names unknown keys, and those that are known."""
        known = [entry.name for entry in dataclasses.fields(TrainConfig)]
        _refuse_unknown(values, known, "the training config")
        missing = [name for name in ("model", "data", "out") if name not in values]
        if missing:
            raise InputError(f"the training config lacks {missing}")
        found = dict(values)
        if isinstance(found.get("eval_by"), str):
            found["eval_by"] = [name.strip() for name in found["eval_by"].split(",") if name.strip()]
        if "eval_by" in found:
            found["eval_by"] = tuple(found["eval_by"] or ())
        return TrainConfig(**found)


def grpo_settings(config: TrainConfig) -> dict[str, Any]:
    """``config.grpo`` with what a run needs where it says nothing; every key known to GRPOConfig.

    logging_steps 1; the seed; on a machine without an accelerator use_cpu, and on a CPU no bf16 (TRL's default).
    """
    import torch

    types = {entry.name: str(entry.type) for entry in dataclasses.fields(_grpo_config_class()) if entry.init}
    _refuse_unknown(config.grpo, list(types), "grpo")
    for name, reason in RESERVED.items():
        if name in config.grpo:
            raise InputError(f"grpo: leave {name} out; {reason}")
    settings = {name: _number(value, types[name]) for name, value in config.grpo.items()}
    settings = {"seed": config.seed, **settings, "output_dir": config.out}
    if "logging_strategy" not in settings:
        settings.setdefault("logging_steps", 1)
    if not torch.accelerator.is_available():
        # without use_cpu the trainer would not see the processes of a launcher
        settings.setdefault("use_cpu", True)
    if settings.get("use_cpu") and not settings.get("fp16"):
        settings.setdefault("bf16", False)
    return settings


def make_grpo_config(
    settings: Mapping[str, Any], plan: BatchPlan | None = None, recipe: str | None = None
) -> GRPOConfig:
    """GRPOConfig, with what keeps the plan's order where there is one; its own refusals as InputError."""
    try:
        arguments = dict(settings) if plan is None else plan.grpo_args(recipe=recipe, **settings)
        return _grpo_config_class()(**arguments)
    except SaerlError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"grpo: GRPOConfig refused the settings: {error}") from error


def _grpo_config_class() -> Any:
    try:
        from trl import GRPOConfig
    except ImportError as error:
        raise MissingDependency("training wants the package trl: pip install 'saerl-fast[rl]'") from error
    return GRPOConfig


def _refuse_unknown(values: Mapping[str, Any], known: list[str], where: str) -> None:
    unknown = sorted(str(name) for name in values if name not in known)
    if not unknown:
        return
    near = [match for name in unknown for match in difflib.get_close_matches(name, known, n=1)]
    hint = f" (did you mean {', '.join(near)}?)" if near else ""
    raise InputError(f"{where}: unknown keys {unknown}{hint}; known are {sorted(known)}")


def _number(value: Any, kind: str) -> Any:
    """YAML 1.1 reads 1e-5 as text; where GRPOConfig wants a float, such text becomes one."""
    if not isinstance(value, str) or "float" not in kind or "str" in kind:
        return value
    try:
        return float(value)
    except ValueError:
        return value
