"""The shell commands: saerl featurize | verify | repair | merge | export | evaluate | label | plan | train | report |
convert | train-sae | env | bench | demo.

Each command is one module with ``add`` (its options) and ``run`` (its work). Nothing heavy is imported
before a command runs, so that ``saerl --help`` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from saerl_fast import __version__
from saerl_fast.cli.config import apply_config
from saerl_fast.errors import SaerlError

COMMANDS = (
    "featurize",
    "verify",
    "repair",
    "merge",
    "export",
    "evaluate",
    "label",
    "plan",
    "train",
    "report",
    "convert",
    "train-sae",
    "env",
    "bench",
    "demo",
)


def build_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser and its subparsers by command."""
    parser = argparse.ArgumentParser(
        prog="saerl",
        description="Steer RL post-training by what a model's own activations say about its data.",
    )
    parser.add_argument("--version", action="version", version=f"saerl_fast {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    found = {}
    for name in COMMANDS:
        module = importlib.import_module(_module_of(name))
        command = subparsers.add_parser(name, help=module.SUMMARY, description=module.__doc__)
        command.add_argument("--config", metavar="FILE", help="YAML file of options; the command line wins over it")
        module.add(command)
        found[name] = command
    return parser, found


def _module_of(command: str) -> str:
    return f"saerl_fast.cli.{command.replace('-', '_')}"


def _join_shares(words: list[str]) -> list[str]:
    """The same with --shard and its value in one word: argparse takes -1/3 for an option, and says nothing about it."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] == "--shard" and re.fullmatch(r"-\d+/.*", word):
            word = f"{joined.pop()}={word}"
        joined.append(word)
    return joined


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 on success, 1 for a failed check, 2 for an error that the message explains."""
    words = _join_shares(list(sys.argv[1:] if argv is None else argv))
    parser, commands = build_parser()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "transformers", "datasets"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    formatted = warnings.formatwarning
    warnings.formatwarning = _in_one_line
    try:
        apply_config(words, commands)
        args = parser.parse_args(words)
        module = importlib.import_module(_module_of(args.command))
        code: int = module.run(args)
    except (SaerlError, OSError) as error:
        print(f"saerl: {type(error).__name__}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("saerl: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    finally:
        warnings.formatwarning = formatted
    return code


def _in_one_line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: Any = None) -> str:
    """A warning as the shell shows it: which line of ours it came from says nothing there."""
    return f"saerl: {category.__name__}: {message}\n"
