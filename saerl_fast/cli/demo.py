"""The whole road on an embedded world whose truth is known."""

from __future__ import annotations

import argparse

SUMMARY = "run the whole road on an embedded example"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="out/demo", metavar="DIR", help="folder for the results (default out/demo)")
    parser.add_argument("--problems", type=int, default=4000, help="how many problems are read (default 4000)")
    parser.add_argument("--labelled", type=int, default=1200, help="how many get rollouts (default 1200)")
    parser.add_argument("--held-out", type=int, default=400, help="how many others judge the policy (default 400)")
    parser.add_argument("--steps", type=int, default=40, help="steps of each GRPO run (default 40)")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    import warnings
    from pathlib import Path

    from saerl_fast.demo.run import Sizes, run_demo

    # what trl and transformers tell each other about names to come is not for the user to act on
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    sizes = Sizes(args.problems, args.labelled, args.held_out, args.steps, args.seed)
    report = run_demo(Path(args.out), sizes)
    print(f"\nThe whole story is on one page: {report}")
    return 0
