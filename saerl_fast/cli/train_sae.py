"""Train an SAE on a model's activations, with sae-lens. A run that was killed goes on where it stopped."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

SUMMARY = "texts and a model to an SAE"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "data", metavar="DATA", help=".jsonl, .jsonl.gz, .csv, .parquet, or a hub dataset as ID[:CONFIG][@SPLIT]"
    )
    parser.add_argument("--text-field", required=True, help="column of texts, or of chat messages")
    parser.add_argument("--model", required=True, help="the model whose activations are read: a folder or a hub id")
    parser.add_argument("--layer", type=int, help="block whose output is read, from 0")
    parser.add_argument("--hook", help="the place to read: blocks.3.hook_mlp_out, or a module path")
    parser.add_argument("--kind", default="topk", choices=["topk", "batchtopk"])
    parser.add_argument("--k", type=int, required=True, help="latents active on a token (batchtopk: on average)")
    parser.add_argument("--width", type=int, help="latents of the SAE")
    parser.add_argument("--expansion", type=int, help="the same, as latents per channel of what is read")
    parser.add_argument("--tokens", type=int, required=True, help="activations to train on")
    parser.add_argument("--batch-rows", type=int, default=4096, help="activations of a step (default 4096)")
    parser.add_argument("--buffer-rows", type=int, help="activations mixed at once (default: 16 steps)")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate of Adam (default 0.001)")
    parser.add_argument("--seed", type=int, default=0, help="weights at the start, order of the texts (default 0)")
    parser.add_argument("--max-length", type=int, default=1024, help="cut texts at this many tokens (default 1024)")
    parser.add_argument("--skip-first", type=int, default=0, metavar="N", help="leave out a text's first N tokens")
    parser.add_argument("--tokens-per-batch", type=int, help="tokens of one forward pass, padding included")
    parser.add_argument(
        "--checkpoint-every", type=int, default=500, metavar="N", help="steps a kill can cost (default 500)"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: CUDA where there is one)")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")


PASSED = (
    *("layer", "hook", "kind", "k", "width", "expansion", "tokens", "batch_rows", "buffer_rows", "lr", "seed"),
    *("max_length", "skip_first", "tokens_per_batch", "checkpoint_every", "device"),
)
"""The options that are arguments of train_sae."""


def run(args: argparse.Namespace) -> int:
    from saerl_fast.errors import InputError
    from saerl_fast.extract.inputs import column_names, has_column, hash_file, read_table, texts_of
    from saerl_fast.sae_trainer import train_sae

    rows = read_table(args.data)
    if not has_column(rows, args.text_field):
        raise InputError(f"{args.data} has no column {args.text_field!r}; it has {column_names(rows)}")
    if Path(args.out).exists() and not Path(args.out).is_dir():
        raise InputError(f"--out {args.out} is a file; a folder is wanted")
    source: dict[str, Any] = {"data": args.data, "text_field": args.text_field}
    if Path(args.data).is_file():
        source |= {"data": str(Path(args.data).resolve()), "sha256": hash_file(args.data)}
    trained = train_sae(
        texts_of(rows, args.text_field),
        str(Path(args.model).resolve()) if Path(args.model).exists() else args.model,
        args.out,
        source=source,
        **{name: getattr(args, name) for name in PASSED},
    )
    found = trained.sanity
    print(
        f"{trained.folder}: {trained.sae.d_sae} latents of {trained.sae.d_in} channels. On {trained.held_out_tokens} "
        f"held-out tokens: explained variance {found.explained_variance:.3f}, L0 {found.l0:.1f}, "
        f"{found.dead_share:.1%} of the latents on none"
    )
    return 0
