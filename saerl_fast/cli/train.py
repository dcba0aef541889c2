"""GRPO on a model, a table, a plan and a verifier, with TRL; held-out accuracy before and after.

Best with --config FILE; its keys are these options, and "grpo" is a mapping that is handed to GRPOConfig.
A run that was killed goes on from its last checkpoint (grpo: save_steps); a finished one is left as it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

SUMMARY = "GRPO with TRL, with or without a plan"


class GrpoSetting(argparse.Action):
    """--grpo KEY=VALUE, any number of times; wins over the same key of the config file."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        import yaml

        from saerl_fast.cli.config import ODD_YAML

        name, mark, text = str(values).partition("=")
        if not mark:
            raise argparse.ArgumentError(self, f"wanted KEY=VALUE; got {values!r}")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, *ODD_YAML) as error:
            raise argparse.ArgumentError(self, f"{name}: not YAML: {error}") from error
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), name: value})


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="the policy: a folder or a hub id")
    parser.add_argument("--data", required=True, help=".jsonl, .jsonl.gz, .csv, .parquet, or a hub dataset id")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the run")
    parser.add_argument("--text-field", default="problem", help="column of prompts (default problem)")
    parser.add_argument("--answer-field", default="answer", help="column of answers (default answer)")
    parser.add_argument("--id-field", help="column that names the rows (default: id, else their numbers)")
    parser.add_argument("--plan", metavar="DIR", help="folder written by saerl plan")
    parser.add_argument(
        "--shuffled",
        action=argparse.BooleanOptionalAction,
        help="with a plan: its prompts in random order, the baseline; without one: --no-shuffled is file order",
    )
    parser.add_argument("--verifier", default="math", help='"math" (default), or module:function, which is run')
    parser.add_argument("--recipe", help="grpo or dapo: settings of the loss (default: TRL's)")
    parser.add_argument("--force", action="store_true", help="several optimizer steps on batches of one cluster")
    parser.add_argument("--eval", metavar="DATA", help="held-out problems, answered before and after")
    parser.add_argument("--eval-rollouts", default="greedy", help="greedy (default), or completions of each problem")
    parser.add_argument("--eval-by", type=columns, default="topic,level", help="columns to tell accuracy apart by")
    parser.add_argument("--eval-batch-size", type=int, default=64, help="completions made at once (default 64)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grpo", action=GrpoSetting, metavar="KEY=VALUE", help="a setting of GRPOConfig; repeatable")


def columns(text: str) -> Any:
    """Names with commas between them, or the JSON list that a config's list comes as."""
    return json.loads(text) if text.lstrip().startswith("[") else text


def run(args: argparse.Namespace) -> int:
    import os
    import warnings

    from saerl_fast.rl.train import TrainConfig, train

    # what trl and transformers tell each other about names to come is not for the user to act on
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    values = {name: value for name, value in vars(args).items() if name not in ("command", "config")}
    rollouts = values["eval_rollouts"]
    values["eval_rollouts"] = int(rollouts) if isinstance(rollouts, str) and rollouts.isdigit() else rollouts
    result = train(TrainConfig.from_mapping({**values, "grpo": values["grpo"] or {}}))
    if os.environ.get("RANK", "0") != "0":
        return 0
    state = "finished" if result.ran else "was finished before; nothing was done"
    print(f"{result.out}: {result.done.get('steps')} steps, {state}")
    if result.eval is not None and result.eval["after"] is not None:
        change = result.eval["difference"]
        error = "" if change["standard_error"] is None else f" ± {change['standard_error']:.3f} (standard error)"
        print(
            f"held-out accuracy {result.eval['before']['accuracy']:.3f} -> {result.eval['after']['accuracy']:.3f} "
            f"over {result.eval['n']} problems, difference {change['accuracy']:+.3f}{error}"
        )
    return 0
