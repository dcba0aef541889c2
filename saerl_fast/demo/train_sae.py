"""Train the SAE of the embedded policy: ``python -m saerl_fast.demo.train_sae --out DIR``.

A TopK SAE on the output of the policy's middle block, over train problems (the faulty ones too: they are what a
reader meets). Needs the extra ``sae-lens``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import time
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from saerl_fast.demo.figures import write_figures
from saerl_fast.demo.policy import NAME, POLICY
from saerl_fast.demo.problems import generate
from saerl_fast.errors import FormatError
from saerl_fast.extract.hooks import block_output
from saerl_fast.extract.reader import open_reader
from saerl_fast.extract.stream import ActivationStream
from saerl_fast.extract.tokens import Text
from saerl_fast.formats import load_sae
from saerl_fast.sae import SAESanity, sanity
from saerl_fast.sae_trainer import train_sae

log = logging.getLogger(__name__)

LAYER = 1
"""The block that is read, counted from 0: the second of four."""

D_SAE, K = 1024, 16
CONTEXT = 256


def train(policy: Path, out: Path, *, problems: int, rows: int, seed: int = 0) -> SAESanity:
    """Train on ``rows`` tokens of ``problems`` train problems, save in fp16, measure on held-out tokens.

    The training itself is resumable; its folder stays beside ``out``.
    """

    def texts(split: str) -> list[Text]:
        return [problem.text for problem in generate(problems, split=split, seed=seed)]

    metadata = {
        "model_name": NAME,
        "hook_name": f"blocks.{LAYER}.hook_resid_post",
        "hf_hook_name": f"model.layers.{LAYER}",
        "context_size": CONTEXT,
        "prepend_bos": False,
    }
    unseen = texts("held_out")
    trained = train_sae(
        texts("train"),
        policy,
        out.with_name(f"{out.name}.training"),
        layer=LAYER,
        width=D_SAE,
        k=K,
        tokens=rows,
        held_out=unseen[:256],
        batch_rows=1024,
        buffer_rows=65_536,
        max_length=CONTEXT,
        metadata=metadata,
        seed=seed,
        device="cpu",
        dtype=torch.float32,
    )
    out.mkdir(parents=True, exist_ok=True)
    halve(trained.folder, out)
    reader = open_reader(policy, block_output(LAYER), device="cpu", dtype=torch.float32)
    stream = ActivationStream(unseen, reader, batch_rows=1024, buffer_rows=65_536, seed=seed, max_length=CONTEXT)
    return sanity(load_sae(out), torch.cat(list(itertools.islice(stream, 16))))


def halve(folder: Path, out: Path) -> None:
    """Write a sae-lens folder again with weights in fp16, and say so in its cfg.json."""
    weights = load_file(folder / "sae_weights.safetensors")
    largest = max(float(tensor.abs().max()) for tensor in weights.values())
    if largest > torch.finfo(torch.float16).max:
        raise FormatError(f"halve: wanted weights within fp16; got {largest:g} in {folder}. Keep them in fp32")
    half = {name: tensor.half().contiguous() for name, tensor in weights.items()}
    save_file(half, out / "sae_weights.safetensors")
    settings = json.loads((folder / "cfg.json").read_text()) | {"dtype": "float16"}
    (out / "cfg.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", type=Path, default=POLICY)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--problems", type=int, default=20_000)
    parser.add_argument("--rows", type=int, default=2_000_000, help="tokens to train on")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    begun = time.monotonic()
    found = train(arguments.policy, arguments.out, problems=arguments.problems, rows=arguments.rows)
    write_figures(arguments.out, asdict(found), minutes=(time.monotonic() - begun) / 60)
    log.info("%s", found)


if __name__ == "__main__":
    main()
