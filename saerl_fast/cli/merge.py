"""Join the shares that several workers computed (saerl featurize --shard i/n) into one feature folder."""

from __future__ import annotations

import argparse

SUMMARY = "join the shares of several workers"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the feature folder to be made whole")
    parser.add_argument(
        "parts", nargs="*", default=[], metavar="PART", help="folders of shares (default: DIR/part-i-of-n)"
    )


def run(args: argparse.Namespace) -> int:
    from saerl_fast.extract.merge import merge_parts

    job = merge_parts(args.folder, args.parts or None)
    print(f"{args.folder}: {job.rows} rows in {job.shards} shards, joined; the shares can be deleted")
    return 0
