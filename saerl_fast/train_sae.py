"""Train a TopK SAE with sae-lens on our activations: sae-lens does the training, we bring the rows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from saerl_fast.errors import MissingDependency
from saerl_fast.formats import load_sae
from saerl_fast.sae import SAE, SAESanity, sanity

__all__ = ["SAESanity", "sanity", "train_topk_sae"]


def train_topk_sae(
    stream: Iterator[Tensor],
    out: str | os.PathLike[str],
    *,
    d_sae: int,
    k: int,
    rows: int,
    batch_rows: int = 1024,
    lr: float = 1e-3,
    metadata: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> SAE:
    """Train on ``rows`` rows of the stream, save the SAE as a sae-lens folder, and load it from there.

    stream: float32 [batch_rows, D] without end (``extract.stream.stream_activations``).
    metadata: what it was trained on (model_name, hook_name, context_size), kept in cfg.json.
    Needs the extra ``sae-lens``. The global torch seed is set to ``seed`` (sae-lens initialises from it)
    and restored.
    """
    try:
        from sae_lens.config import SAETrainerConfig
        from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
        from sae_lens.training.sae_trainer import SAETrainer
    except ImportError as error:
        raise MissingDependency("training an SAE needs sae-lens: pip install 'saerl-fast[sae-lens]'") from error
    first = next(stream)
    steps = rows // batch_rows
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trained = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=first.shape[1], d_sae=d_sae, k=k, device="cpu"))
        trained.b_dec.data = first.mean(dim=0)
        config = SAETrainerConfig(
            total_training_samples=steps * batch_rows,
            train_batch_size_samples=batch_rows,
            lr=lr,
            lr_end=lr / 10,
            lr_warm_up_steps=steps // 20,
            lr_decay_steps=steps // 5,
            device="cpu",
        )
        trained = SAETrainer(config, trained, stream).fit()
    for key, value in (metadata or {}).items():
        setattr(trained.cfg.metadata, key, value)
    trained.save_inference_model(os.fspath(out))
    return load_sae(out)
