"""How well SAE features tell topic, difficulty and quality, beside the controls they have to beat."""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

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


def column(rows: list[dict[str, Any]], name: str) -> list[Any]:
    """One column of the table kept in a feature folder."""
    from saerl_fast.errors import InputError
    from saerl_fast.extract.inputs import column_names, has_column

    if not has_column(rows, name):
        raise InputError(f"no column {name!r}; there are {column_names(rows)}")
    return [row.get(name) for row in rows]


def read_texts_again(folder: str, data: str | None, rows: int) -> list[Any]:
    """The text column of the table that featurize read, which must not have changed."""
    from saerl_fast.errors import JobMismatchError
    from saerl_fast.extract.inputs import hash_file, read_table
    from saerl_fast.extract.store import Job

    source = Job.load(Path(folder)).source
    path = data or str(source.get("data"))
    if source.get("sha256") and Path(path).is_file() and hash_file(path) != source["sha256"]:
        raise JobMismatchError(f"{path} is not the file that {folder} was made from: its SHA-256 differs")
    table = read_table(path)
    if len(table) != rows:
        raise JobMismatchError(f"{path} has {len(table)} rows, {folder} has {rows}; is it the same table?")
    return [row.get(str(source["text_field"])) for row in table]


def as_text(found: Any) -> str:
    """A text for the word controls: a string as it is, the contents of messages, nothing for a missing one."""
    if isinstance(found, list):
        return "\n".join(str(message.get("content", "")) for message in found)
    return found if isinstance(found, str) else ""
