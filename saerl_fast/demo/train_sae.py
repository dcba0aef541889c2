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
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from saerl_fast.demo.figures import write_figures
from saerl_fast.demo.policy import NAME, POLICY
from saerl_fast.demo.problems import generate
from saerl_fast.errors import FormatError
from saerl_fast.extract.hooks import block_output
from saerl_fast.extract.loading import load_blocks, load_tokenizer
from saerl_fast.extract.reader import Reader
from saerl_fast.extract.stream import stream_activations
from saerl_fast.formats import load_sae
from saerl_fast.train_sae import SAESanity, sanity, train_topk_sae

log = logging.getLogger(__name__)

LAYER = 1
"""The block that is read, counted from 0: the second of four."""

D_SAE, K = 1024, 16
CONTEXT = 256


def train(policy: Path, out: Path, *, problems: int, rows: int, seed: int = 0) -> SAESanity:
    """Train on ``rows`` tokens of ``problems`` train problems, save in fp16, measure on held-out tokens."""
    reader = Reader(
        load_blocks(str(policy), LAYER, device="cpu", dtype=torch.float32),
        load_tokenizer(str(policy)),
        block_output(LAYER),
        NAME,
    )

    def stream(split: str) -> Iterator[Tensor]:
        texts = [problem.text for problem in generate(problems, split=split, seed=seed)]
        return stream_activations(texts, reader, batch_rows=1024, buffer_rows=65_536, seed=seed, max_length=CONTEXT)

    metadata = {
        "model_name": NAME,
        "hook_name": f"blocks.{LAYER}.hook_resid_post",
        "hf_hook_name": f"model.layers.{LAYER}",
        "context_size": CONTEXT,
        "prepend_bos": False,
    }
    train_topk_sae(stream("train"), out, d_sae=D_SAE, k=K, rows=rows, metadata=metadata, seed=seed)
    halve(out)
    return sanity(load_sae(out), torch.cat(list(itertools.islice(stream("held_out"), 16))))


def halve(folder: Path) -> None:
    """Rewrite the weights of a sae-lens folder in fp16, and say so in its cfg.json."""
    weights = load_file(folder / "sae_weights.safetensors")
    largest = max(float(tensor.abs().max()) for tensor in weights.values())
    if largest > torch.finfo(torch.float16).max:
        raise FormatError(f"halve: wanted weights within fp16; got {largest:g} in {folder}. Keep them in fp32")
    half = {name: tensor.half().contiguous() for name, tensor in weights.items()}
    save_file(half, folder / "sae_weights.safetensors")
    settings = json.loads((folder / "cfg.json").read_text()) | {"dtype": "float16"}
    (folder / "cfg.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


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
