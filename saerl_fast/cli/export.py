"""Write a feature folder as one table: parquet, or a folder for datasets.load_from_disk."""

from __future__ import annotations

import argparse

SUMMARY = "a feature folder as parquet or as a dataset"
OTHER_FORMATS = (".parquet", ".pq", ".csv", ".tsv", ".json", ".jsonl", ".gz", ".arrow", ".feather", ".npz")
"""Suffixes of files; --out names a folder, which may have a dot in its name, or a .parquet file."""


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="feature folder")
    parser.add_argument("--out", required=True, metavar="PATH", help="new file FILE.parquet, or a new folder")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from saerl_fast.errors import InputError
    from saerl_fast.extract.tables import export_dataset, export_parquet

    if Path(args.out).suffix.lower() in OTHER_FORMATS and not args.out.endswith(".parquet"):
        raise InputError(f"--out {args.out} must end in .parquet, or be a folder's name without a suffix")
    write = export_parquet if args.out.endswith(".parquet") else export_dataset
    rows = write(args.folder, args.out)
    print(f"{args.out}: {rows} rows")
    return 0
