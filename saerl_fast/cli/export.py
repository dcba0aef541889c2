"""Write a feature folder as one table: parquet, or a folder for datasets.load_from_disk."""

from __future__ import annotations

import argparse

SUMMARY = "a feature folder as parquet or as a dataset"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="feature folder")
    parser.add_argument("--out", required=True, metavar="PATH", help="new file FILE.parquet, or a new folder")


def run(args: argparse.Namespace) -> int:
    from saerl_fast.extract.tables import export_dataset, export_parquet

    write = export_parquet if args.out.endswith(".parquet") else export_dataset
    rows = write(args.folder, args.out)
    print(f"{args.out}: {rows} rows")
    return 0
