"""How well SAE features tell topic, difficulty and quality, beside the controls they have to beat."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

SUMMARY = "SAE features beside their controls on labelled columns"

logger = logging.getLogger(__name__)


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="folder written by saerl featurize")
    parser.add_argument("--data", help="where the texts are now (default: where featurize read them)")
    parser.add_argument("--topic", metavar="COL", help="column of categories")
    parser.add_argument("--difficulty", metavar="COL", help="column of numbers, higher is harder")
    parser.add_argument("--quality", metavar="COL", help="column of two values, or of numbers")
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON")
    parser.add_argument("--seed", type=int, default=0, help="chooses the held-out rows (default 0)")


def run(args: argparse.Namespace) -> int:
    from saerl_fast.errors import InputError
    from saerl_fast.extract.source import as_text, column, read_texts_again
    from saerl_fast.extract.store import load_features, read_columns
    from saerl_fast.signals.evaluate import evaluate, format_table

    if not (args.topic or args.difficulty or args.quality):
        raise InputError("name at least one column of labels: --topic, --difficulty or --quality")
    if args.json and not Path(args.json).resolve().parent.is_dir():
        raise InputError(f"--json {args.json}: the folder to write to does not exist")
    features = load_features(args.folder)
    columns = read_columns(args.folder)
    texts = [as_text(text) for text in read_texts_again(args.folder, args.data, len(features))]
    result = evaluate(
        features.to_scipy(),
        hidden=features.hidden,
        texts=texts,
        lengths=features.n_tokens,
        topic=column(columns, args.topic) if args.topic else None,
        difficulty=column(columns, args.difficulty) if args.difficulty else None,
        quality=column(columns, args.quality) if args.quality else None,
        seed=args.seed,
    )
    if features.hidden is None:
        logger.warning("%s holds no hidden states (featurize --keep-hidden): the row raw is missing", args.folder)
    print(format_table(result))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0
