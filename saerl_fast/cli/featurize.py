"""Read a table of texts, write a folder of SAE features. A run that was killed goes on where it stopped."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saerl_fast.ops import ScreeningCounts

SUMMARY = "texts to SAE features"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", metavar="DATA", help=".jsonl, .jsonl.gz, .csv, .parquet, or a hub dataset as ID[:CONFIG][@SPLIT]"
    )
    parser.add_argument("--text-field", required=True, help="column of texts, or of chat messages")
    parser.add_argument("--completion-field", help="column of completions; --text-field then names the prompts")
    parser.add_argument("--model", required=True, help="reader model: a folder or a hub id")
    parser.add_argument("--sae", required=True, help="SAE folder, or RELEASE/SAE_ID of sae-lens")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--layer", type=int, help="block whose output is read, from 0 (default: the SAE's own hook)")
    parser.add_argument("--hook", help="the place to read: blocks.3.hook_mlp_out, or a module path")
    parser.add_argument("--pool", default="mean", choices=["mean", "max", "sum", "last", "count"])
    parser.add_argument("--max-length", type=int, help="cut texts at this many tokens")
    parser.add_argument("--keep-hidden", action="store_true", help="also keep mean hidden states (for evaluate)")
    parser.add_argument("--include-special", action="store_true", help="pool BOS, EOS, CLS and SEP too")
    parser.add_argument(
        "--pool-over",
        default="all",
        choices=["all", "prompt", "completion", "last_user"],
        help="the part that is pooled",
    )
    parser.add_argument("--skip-first", type=int, default=0, metavar="N", help="never pool a text's first N tokens")
    parser.add_argument(
        "--long-texts", default="truncate", choices=["truncate", "window", "error"], help="what becomes of longer texts"
    )
    parser.add_argument("--window-stride", type=int, metavar="N", help="tokens from one window to the next")
    parser.add_argument("--tokens-per-batch", type=int, help="tokens of one forward pass, padding included")
    parser.add_argument(
        "--packing", default="auto", choices=["auto", "on", "off"], help="lay texts end to end instead of padding them"
    )
    parser.add_argument("--shard-rows", type=int, default=1024, help="rows per shard (default 1024)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: CUDA where there is one)")
    parser.add_argument("--on-nonfinite", default="raise", choices=["raise", "mark"])


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from saerl_fast.errors import InputError
    from saerl_fast.extract.inputs import choose_ids, column_names, has_column, hash_file, read_table, texts_of
    from saerl_fast.featurizer import featurize
    from saerl_fast.ops import screening_counts

    rows = read_table(args.data)
    fields = [field for field in (args.text_field, args.completion_field) if field is not None]
    for field in fields:
        if not has_column(rows, field):
            raise InputError(f"{args.data} has no column {field!r}; it has {column_names(rows)}")
    if Path(args.out).exists() and not Path(args.out).is_dir():
        raise InputError(f"--out {args.out} is a file; a folder is wanted")
    ids, id_field = choose_ids(rows)
    source: dict[str, Any] = {"data": args.data, "text_field": args.text_field, "id_field": id_field}
    if args.completion_field is not None:
        source["completion_field"] = args.completion_field
    if Path(args.data).is_file():
        source |= {"data": str(Path(args.data).resolve()), "sha256": hash_file(args.data)}
    before = screening_counts()
    features = featurize(
        texts_of(rows, args.text_field, args.completion_field),
        args.model,
        args.sae,
        layer=args.layer,
        hook=args.hook,
        pool=args.pool,
        max_length=args.max_length,
        keep_hidden=args.keep_hidden,
        include_special=args.include_special,
        pool_over=args.pool_over,
        skip_first=args.skip_first,
        long_texts=args.long_texts,
        window_stride=args.window_stride,
        tokens_per_batch=args.tokens_per_batch,
        packing=args.packing,
        shard_rows=args.shard_rows,
        device=args.device,
        on_nonfinite=args.on_nonfinite,
        ids=ids,
        columns=[{k: v for k, v in row.items() if k not in fields} for row in rows],
        source=source,
        out=args.out,
    )
    counts = ", ".join(f"{n} {status}" for status, n in features.status_counts().items())
    mean = features.nnz / max(1, len(features))
    print(f"{args.out}: {len(features)} rows ({counts}), {mean:.1f} of {features.n_features} features a row")
    if said := screened_since(before):
        print(said)
    return 0


def screened_since(before: ScreeningCounts) -> str | None:
    """How many rows of activations int8 screening took since, and how many of them it scored whole; None for none."""
    from saerl_fast.ops import screening_counts

    after = screening_counts()
    rows, whole = after.rows - before.rows, after.whole_rows - before.whole_rows
    return f"int8 screening: {rows:,} token rows encoded, {whole:,} of them scored whole" if rows else None
