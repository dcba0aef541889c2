"""Put the bad files of a feature folder aside (quarantine/, nothing is deleted) and compute them again.

The manifest of a folder that `saerl featurize` wrote says how; texts, model and SAE must be what they were. For a
folder written from Python only the first half is done: call featurize again as before.
"""

from __future__ import annotations

import argparse

SUMMARY = "compute the bad shards of a feature folder again"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="feature folder, or a share of one (part-i-of-n)")
    parser.add_argument("--data", help="where the table of texts is now (default: where it was)")
    parser.add_argument("--model", help="where the model is now")
    parser.add_argument("--sae", help="where the SAE is now")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from saerl_fast.extract.inspect import quarantine
    from saerl_fast.extract.store import PART

    folder = Path(args.folder)
    found = quarantine(folder)
    for finding, place in found:
        print(finding.problem + (f"\n  it is now {place}" if place is not None else ""))
    if not found:
        print(f"{folder}: whole; nothing to do")
        return 0
    if any(finding.path.name == PART for finding, _ in found):
        print(f"{folder}: run the command that wrote this share once more, with its --shard i/n")
        return 1
    return _compute(args)


def _compute(args: argparse.Namespace) -> int:
    """Run the recorded command again for what is missing now."""
    from pathlib import Path

    from saerl_fast.cli.featurize import RECORDED, featurize_table
    from saerl_fast.extract.job import MANIFEST, Job
    from saerl_fast.extract.store import read_part

    root = Path(args.folder)
    call = Job.load(root).source.get("call") if (root / MANIFEST).exists() else None
    if not isinstance(call, dict) or not {"model", "sae", "device"} <= set(call) <= set(RECORDED):
        print(f"{root}: run the command or call that wrote this folder once more; it computes what is missing")
        return 1
    job, part = Job.load(root), read_part(root)
    moved = {name: getattr(args, name) for name in ("model", "sae") if getattr(args, name)}
    device = None if call.get("device_map") else call["device"] or job.fingerprint.get("device")
    call = {**call, "device": device, **moved}
    out = root if part.of == 1 else root.parent
    written = featurize_table(
        args.data or str(job.source["data"]),
        (str(job.source["text_field"]), job.source.get("completion_field")),
        call,
        out,
        part,
    )
    print(f"{root}: {written.computed} shards computed again; the folder is whole")
    return 0
