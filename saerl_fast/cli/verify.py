"""Read every byte of a feature folder and name every bad or missing shard. Ends with 0 where all is well, else 1."""

from __future__ import annotations

import argparse

SUMMARY = "is a feature folder whole?"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="feature folder, or a share of one (part-i-of-n)")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from saerl_fast.extract.inspect import recorded_splits, verify_store
    from saerl_fast.extract.job import Job
    from saerl_fast.extract.store import read_part

    folder = Path(args.folder)
    found = 0
    for finding in verify_store(folder):
        print(finding.problem)
        found += 1
    if found:
        print(f"{folder}: {found} problems; `saerl repair {folder}` puts bad files aside and computes them again")
        return 1
    job, part = Job.load(folder), read_part(folder)
    share = f"share {part.index}/{part.of}, " if part.of > 1 else ""
    print(f"{folder}: whole ({share}{len(part.shards(job))} shards of {job.rows} rows)")
    if split := recorded_splits(folder, job):
        print(f"computed in smaller batches, because the device ran out of memory: {job.name_shards(split)}")
    return 0
