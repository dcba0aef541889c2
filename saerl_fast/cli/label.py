"""Difficulty labels: how often a policy solves each problem, from rollouts checked by a verifier.

A run that was killed goes on where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

SUMMARY = "pass rates of a policy on a subset of the problems"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", metavar="DATA", help=".jsonl, .jsonl.gz, .csv, .parquet, or a hub dataset id")
    parser.add_argument("--text-field", required=True, help="column of problems: texts, or lists of chat messages")
    parser.add_argument("--answer-field", required=True, help="column of answers, handed to the verifier as text")
    parser.add_argument("--id-field", help="column that names the rows (default: id, else their numbers)")
    parser.add_argument("--model", required=True, help="the policy: a folder or a hub id")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--rows", type=int, metavar="N", help="label N rows drawn at random (default: all)")
    parser.add_argument("--ids", metavar="FILE", help="label the rows named in this file, one id a line")
    parser.add_argument("--rollouts", type=int, default=8, help="completions of each row (default 8)")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="tokens of a completion (default 512)")
    parser.add_argument("--temperature", type=float, default=1.0, help="default 1.0; 0 is greedy, with --rollouts 1")
    parser.add_argument("--verifier", default="math", help='"math" (default), or module:function, which is run')
    parser.add_argument("--batch-size", type=int, default=16, help="rows completed at once (default 16)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: CUDA where there is one)")
    parser.add_argument("--seed", type=int, default=0, help="draws the rows and the completions (default 0)")


def run(args: argparse.Namespace) -> int:
    from saerl_fast.extract.inputs import hash_file, read_table
    from saerl_fast.rl.label import LABELS, label

    rows = read_table(args.data)
    source: dict[str, Any] = {"data": args.data, "model": args.model}
    if Path(args.data).is_file():
        source["sha256"] = hash_file(args.data)
    labels = label(
        rows,
        args.model,
        verifier=args.verifier,
        text_field=args.text_field,
        answer_field=args.answer_field,
        id_field=args.id_field,
        count=args.rows,
        ids=None if args.ids is None else read_ids(args.ids, rows, args.id_field or "id"),
        rollouts=args.rollouts,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        seed=args.seed,
        batch_size=args.batch_size,
        out=args.out,
        source=source,
        device=args.device,
    )
    rates = [row.pass_rate for row in labels]
    never, always = sum(rate == 0 for rate in rates), sum(rate == 1 for rate in rates)
    print(
        f"{Path(args.out) / LABELS}: {len(labels)} rows, mean pass rate {sum(rates) / len(rates):.3f}, "
        f"{never} never and {always} always solved"
    )
    return 0


def read_ids(path: str, rows: list[dict[str, Any]], field: str) -> list[str | int]:
    """One id a line. Where the table's ids are numbers (or rows are named by their numbers), numbers are wanted."""
    from saerl_fast.errors import FormatError, InputError

    if not Path(path).is_file():
        raise FormatError(f"{path}: no such file of ids")
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if isinstance(rows[0].get(field), str):
        return list(lines)
    try:
        return [int(line) for line in lines]
    except ValueError as error:
        raise InputError(f"{path}: the rows are named by whole numbers; {error}") from error
