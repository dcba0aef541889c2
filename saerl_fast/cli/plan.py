"""Cluster the rows of a feature folder, predict difficulty and quality from labelled columns, write a batch plan."""

from __future__ import annotations

import argparse
import json
import logging

SUMMARY = "features and labels to a batch plan"

logger = logging.getLogger(__name__)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="folder written by saerl featurize")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write the plan to")
    parser.add_argument(
        "--prompts-per-step",
        type=int,
        required=True,
        help="prompts of one generation chunk: TRL's generation_batch_size // num_generations",
    )
    parser.add_argument("--policy", default="default", help="saerl, default, stratified, easy_to_hard or random")
    parser.add_argument("--clusters", type=int, default=16, help="number of clusters (default 16)")
    parser.add_argument(
        "--difficulty", metavar="COL", help="column, higher is harder; every row gets a prediction from it"
    )
    parser.add_argument("--labels", metavar="DIR", help="instead of --difficulty: pass rates written by saerl label")
    parser.add_argument("--quality", metavar="COL", help="column of two values or numbers, higher is better")
    parser.add_argument("--good-label", help="for quality in words: the word that means good")
    parser.add_argument("--drop-lowest", type=float, default=0.0, help="share of the rows to filter by quality")
    parser.add_argument("--max-difficulty", type=float, help="leave out rows predicted harder than this")
    parser.add_argument("--clusters-per-step", help="a number, or any; overrides the policy")
    parser.add_argument("--tail-swap", type=float, help="share of a batch exchanged with a neighbour")
    parser.add_argument("--order", help="easy_to_hard, hard_to_easy or random; overrides the policy")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--partial", default="pad", choices=["pad", "drop", "error"], help="a last batch not full")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--fit-rows",
        type=int,
        default=200_000,
        metavar="N",
        help="rows in memory: of more, clusters and probes are fitted on N and predict the rest (default 200,000)",
    )


def run(args: argparse.Namespace) -> int:
    from saerl_fast.curriculum import make_plan
    from saerl_fast.errors import InputError
    from saerl_fast.extract.source import kept_columns
    from saerl_fast.extract.store import read_shards
    from saerl_fast.rl.label import difficulty_column, read_labels
    from saerl_fast.steer import steer_shards, write_signals

    if args.difficulty and args.labels:
        raise InputError("--difficulty and --labels both name the difficulty; give one of them")
    names = [name for name in (args.difficulty, args.quality) if name]
    columns = dict(zip(names, kept_columns(args.folder, names), strict=True))
    ids: list[str | int] = []
    status: list[str] = []
    for rows in read_shards(args.folder):
        ids += rows.ids
        status += rows.status
    difficulty = columns[args.difficulty] if args.difficulty else None
    if args.labels:
        difficulty = difficulty_column(read_labels(args.labels), ids)
    signals = steer_shards(
        lambda: read_shards(args.folder),
        len(ids),
        fit_rows=args.fit_rows,
        n_clusters=args.clusters,
        difficulty=difficulty,
        quality=columns[args.quality] if args.quality else None,
        good_label=args.good_label,
        seed=args.seed,
    )
    if args.drop_lowest:
        signals.check_filter()
    per_step = args.clusters_per_step
    fingerprint = fingerprint_of_texts(args.folder, len(ids))
    plan = make_plan(
        ids,
        prompts_per_step=args.prompts_per_step,
        clusters=signals.clusters,
        difficulty=signals.difficulty,
        quality=signals.quality,
        status=status,
        policy=args.policy,
        epochs=args.epochs,
        seed=args.seed,
        drop_lowest=args.drop_lowest,
        max_difficulty=args.max_difficulty,
        clusters_per_step=int(per_step) if isinstance(per_step, str) and per_step.isdigit() else per_step,
        tail_swap=args.tail_swap,
        order=args.order,
        partial=args.partial,
        fingerprint=fingerprint,
    )
    plan.save(args.out)
    write_signals(signals, args.out, filtered=args.drop_lowest > 0, features=args.folder)
    print(json.dumps(plan.summary(), indent=1, default=str))
    print(f"{args.out}: {plan}")
    return 0


def fingerprint_of_texts(folder: str, rows: int) -> str | None:
    """Where rows have numbers for ids, the texts themselves tell whether a dataset is the plan's."""
    from pathlib import Path

    from saerl_fast.curriculum import fingerprint
    from saerl_fast.errors import FormatError
    from saerl_fast.extract.job import Job
    from saerl_fast.extract.source import read_texts_again

    source = Job.load(Path(folder)).source
    if source.get("id_field") is not None or "data" not in source:
        return None
    try:
        texts = read_texts_again(folder, None, rows)
    except FormatError as error:
        logger.warning("the plan's dataset will be told by its number of rows alone: %s", error)
        return None
    return fingerprint(texts, str(source["text_field"]))
