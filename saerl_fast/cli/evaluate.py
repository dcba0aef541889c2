"""How well SAE features tell topic, difficulty and quality, beside the controls they have to beat."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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
    parser.add_argument(
        "--rows",
        type=int,
        default=200_000,
        metavar="N",
        help="rows in memory: of more, N of those with a label are drawn by the seed (default 200,000)",
    )


def run(args: argparse.Namespace) -> int:
    from saerl_fast.errors import InputError
    from saerl_fast.extract.source import as_text, kept_columns, read_texts_again
    from saerl_fast.extract.store import read_shards
    from saerl_fast.features import SparseFeatures
    from saerl_fast.signals.evaluate import evaluate, format_table

    if not (args.topic or args.difficulty or args.quality):
        raise InputError("name at least one column of labels: --topic, --difficulty or --quality")
    if args.json and not Path(args.json).resolve().parent.is_dir():
        raise InputError(f"--json {args.json}: the folder to write to does not exist")
    named = {name: getattr(args, name) for name in ("topic", "difficulty", "quality") if getattr(args, name)}
    columns = dict(zip(named, kept_columns(args.folder, list(named.values())), strict=True))
    rows = len(next(iter(columns.values())))
    texts = read_texts_again(args.folder, args.data, rows)
    chosen = _choose_rows(columns, rows, args.rows, args.seed)
    features = SparseFeatures.gather(read_shards(args.folder), chosen)
    labels: dict[str, Any] = {name: [values[row] for row in chosen] for name, values in columns.items()}
    result = evaluate(
        features.to_scipy(),
        hidden=features.hidden,
        texts=[as_text(texts[row]) for row in chosen],
        lengths=features.n_tokens,
        seed=args.seed,
        **labels,
    )
    result["details"]["rows_in_folder"] = rows
    if features.hidden is None:
        logger.warning("%s holds no hidden states (featurize --keep-hidden): the row raw is missing", args.folder)
    print(format_table(result))
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1), encoding="utf-8")
    return 0


def _choose_rows(columns: Mapping[str, Sequence[Any]], rows: int, most: int, seed: int) -> NDArray[np.int64]:
    """All rows; where there are too many, as many of those with a label, ascending."""
    import numpy as np

    from saerl_fast.signals.inputs import is_missing

    if rows <= most:
        return np.arange(rows)
    labelled = [
        row for row, labels in enumerate(zip(*columns.values(), strict=True)) if not all(map(is_missing, labels))
    ]
    chosen = np.random.default_rng(seed).permutation(np.array(labelled or range(rows)))[:most]
    logger.warning("evaluate: %d of %d rows are used, of those with a label; --rows takes more", len(chosen), rows)
    return np.sort(chosen)
