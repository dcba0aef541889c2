"""The whole road on an embedded world whose truth is known."""

from __future__ import annotations

import argparse

SUMMARY = "run the whole road on an embedded example"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", default="out/demo", metavar="DIR", help="folder for the results (default out/demo)")
    parser.add_argument("--problems", type=int, default=2000, help="how many problems (default 2000)")
    parser.add_argument("--seed", type=int, default=0)


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from saerl_fast.demo.run import run_demo

    run_demo(Path(args.out), problems=args.problems, seed=args.seed)
    return 0
