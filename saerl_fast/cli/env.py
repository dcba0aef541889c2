"""Versions, hardware, and which backend runs which operation, with the reason where one does not."""

from __future__ import annotations

import argparse
import json

SUMMARY = "versions, hardware, and the table of operations and backends"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    from saerl_fast.env import env_dict, env_report

    print(json.dumps(env_dict(), indent=1) if args.json else env_report())
    return 0
