"""One self-contained HTML page about a run: what featurize, evaluate, label, plan and train have left in a folder."""

from __future__ import annotations

import argparse

SUMMARY = "one HTML page about a run"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="folder of the run, or one that holds its folders")
    parser.add_argument("--out", metavar="FILE", help="the page (default DIR/report.html)")
    parser.add_argument("--topic", metavar="COL", help="column of the true topics")
    parser.add_argument("--level", metavar="COL", help="column of the true levels, numbers, higher is harder")
    parser.add_argument("--defect", metavar="COL", help="column that is empty, 0, false or none for a sound row")
    parser.add_argument("--data", metavar="FILE", help="where the texts are now (default: where featurize read them)")


def run(args: argparse.Namespace) -> int:
    from saerl_fast.report import write_report

    path = write_report(
        args.folder, out=args.out, data=args.data, topic=args.topic, level=args.level, defect=args.defect
    )
    print(f"{path}: {path.stat().st_size / 1024:,.0f} KiB, one file that needs nothing else")
    return 0
