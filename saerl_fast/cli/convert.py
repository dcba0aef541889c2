"""Turn a published SAE into a sae-lens folder. A .pt file is read as data: nothing that is in it is run."""

from __future__ import annotations

import argparse

SUMMARY = "a published SAE (.pt and others) to a folder that can be loaded"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help=".pt file, or a folder with one, or any SAE folder")
    parser.add_argument("target", metavar="DST", help="folder to write, in sae-lens form")
    parser.add_argument("--kind", choices=["standard", "topk", "abstopk", "jumprelu", "gated"])
    parser.add_argument("--k", type=int, help="features kept per token (topk, abstopk)")
    parser.add_argument(
        "--subtract-b-dec", action=argparse.BooleanOptionalAction, help="whether b_dec is subtracted before encoding"
    )
    parser.add_argument("--model-name", help="model it was trained on")
    parser.add_argument("--hook-name", help="hook it was trained on, such as blocks.12.hook_resid_post")
    parser.add_argument("--context-size", type=int, help="tokens of context it was trained with")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from saerl_fast.errors import InputError
    from saerl_fast.formats.convert import convert

    if Path(args.target).exists() and (not Path(args.target).is_dir() or any(Path(args.target).iterdir())):
        raise InputError(f"DST {args.target} exists and is not an empty folder; nothing is overwritten")
    metadata = {name: getattr(args, name) for name in ("model_name", "hook_name", "context_size")}
    sae = convert(
        args.source,
        args.target,
        kind=args.kind,
        k=args.k,
        apply_b_dec=args.subtract_b_dec,
        metadata={name: value for name, value in metadata.items() if value is not None},
    )
    kept = f", k {sae.k}" if sae.k is not None else ""
    print(
        f"{args.target}: {sae.kind} SAE of {sae.d_sae} latents over {sae.d_in} channels{kept}, {sae.dtype}; "
        f"model {sae.model_name or 'not known'}, hook {sae.hook_name or 'not known'}"
    )
    return 0
