"""Read a table of texts, write a folder of SAE features. A run that was killed goes on where it stopped."""

from __future__ import annotations

import argparse
import json
import logging
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from saerl_fast.extract.job import Part
    from saerl_fast.extract.run import Written
    from saerl_fast.ops import ScreeningCounts

logger = logging.getLogger(__name__)

SUMMARY = "texts to SAE features"


RECORDED = (
    "model",
    "sae",
    "layer",
    "hook",
    "pool",
    "max_length",
    "keep_hidden",
    "include_special",
    "pool_over",
    "skip_first",
    "long_texts",
    "window_stride",
    "tokens_per_batch",
    "packing",
    "compile",
    "shard_rows",
    "device",
    "device_map",
    "dtype",
    "on_nonfinite",
)
"""The options that are arguments of featurize; the manifest keeps them for `saerl repair`."""


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
        "--compile", default="auto", choices=["auto", "on", "off"], help="compile the model's blocks (torch.compile)"
    )
    parser.add_argument(
        "--packing", default="auto", choices=["auto", "on", "off"], help="lay texts end to end instead of padding them"
    )
    parser.add_argument("--shard-rows", type=int, default=1024, help="rows per shard (default 1024)")
    parser.add_argument(
        "--shard",
        metavar="i/n",
        help="compute share i (from 0) of n, for `saerl merge`; default from RANK and WORLD_SIZE or a Slurm array",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: CUDA where there is one)")
    parser.add_argument(
        "--device-map",
        type=device_map,
        metavar="WORD|JSON",
        help="over several devices: auto, balanced, sequential, or an object of modules and devices (needs accelerate)",
    )
    parser.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16", "float16", "float64"],
        help="of the model; auto: the checkpoint's (default: that on CUDA, float32 on a CPU)",
    )
    parser.add_argument("--on-nonfinite", default="raise", choices=["raise", "mark"])


def device_map(text: str) -> str | dict[str, int | str]:
    """A word of transformers, or a JSON object from module to device."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        found: dict[str, int | str] = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not a JSON object: {error}") from error
    return found


def run(args: argparse.Namespace) -> int:
    from saerl_fast.extract.workers import choose_part
    from saerl_fast.ops import screening_counts

    part, reason = choose_part(args.shard, os.environ)
    logger.info("share %d of %d of the shards (%s)", part.index, part.of, reason)
    call = {name: getattr(args, name) for name in RECORDED}
    before = screening_counts()
    written = featurize_table(args.data, (args.text_field, args.completion_field), call, args.out, part)
    counts = ", ".join(f"{n} {status}" for status, n in written.status.items() if n)
    mean = written.entries / max(1, written.rows)
    print(f"{written.folder}: {written.rows} rows ({counts}), {mean:.1f} features a row")
    if said := screened_since(before):
        print(said)
    if part.of > 1:
        print(f"when all {part.of} shares are done: saerl merge {args.out}")
    return 0


def featurize_table(
    data: str, fields: tuple[str, str | None], call: Mapping[str, Any], out: str | os.PathLike[str], part: Part
) -> Written:
    """What the command does, from options that the manifest records, so that `saerl repair` can do it again.

    fields: the columns of texts and of completions.
    """
    from pathlib import Path

    from saerl_fast.errors import InputError
    from saerl_fast.extract.inputs import choose_ids, column_names, has_column, hash_file, read_table, texts_of
    from saerl_fast.extract.run import check_out, write_features
    from saerl_fast.extract.settings import Request
    from saerl_fast.featurizer import find_task

    check_out(out)
    rows = read_table(data)
    for field in fields:
        if field is not None and not has_column(rows, field):
            raise InputError(f"{data} has no column {field!r}; it has {column_names(rows)}")
    ids, id_field = choose_ids(rows)
    paths = {name: _whole_path(call[name]) for name in ("model", "sae")}
    source: dict[str, Any] = {"data": data, "text_field": fields[0], "id_field": id_field, "call": {**call, **paths}}
    if fields[1] is not None:
        source["completion_field"] = fields[1]
    if Path(data).is_file():
        source |= {"data": str(Path(data).resolve()), "sha256": hash_file(data)}
    request = Request(
        **{name: value for name, value in call.items() if name not in paths},
        ids=ids,
        columns=[{k: v for k, v in row.items() if k not in fields} for row in rows],
        source=source,
    )
    task = find_task(texts_of(rows, *fields), call["model"], call["sae"], request, out, part)
    return write_features(task, out, part=part)


def _whole_path(name: str) -> str:
    """A folder by its whole path, a hub id as it is."""
    from pathlib import Path

    return str(Path(name).resolve()) if Path(name).exists() else name


def screened_since(before: ScreeningCounts) -> str | None:
    """How many rows of activations screening took since, and how many of them it scored whole; None for none."""
    from saerl_fast.ops import screening_counts

    after = screening_counts()
    rows, whole = after.rows - before.rows, after.whole_rows - before.whole_rows
    return f"screening: {rows:,} token rows encoded, {whole:,} of them scored whole" if rows else None
