"""sae-lens's trainer, driven step by step, so that a run can stop between any two steps and go on with the same bits.

What a step depends on: the weights, Adam's moments, sae-lens's counts of what fired, and the stream. Schedules of
rates are functions of the step number alone and are replayed.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors.torch import save
from torch import Tensor
from tqdm.auto import tqdm

from saerl_fast.durable import replace
from saerl_fast.errors import CorruptStoreError, MissingDependency, NonFiniteError
from saerl_fast.formats.sae_lens import CONFIG_FILE, WEIGHTS_FILE
from saerl_fast.sae_trainer.checkpoint import read_checkpoint, write_checkpoint
from saerl_fast.sae_trainer.recipe import Recipe

if TYPE_CHECKING:
    from sae_lens.training.sae_trainer import SAETrainer

logger = logging.getLogger(__name__)

CHECKPOINT, PROGRESS = "checkpoint.safetensors", "progress.jsonl"
COUNTS = ("act_freq_scores", "n_forward_passes_since_fired")
MOMENTS = ("exp_avg", "exp_avg_sq")
NUMBERS = ("n_training_steps", "n_training_samples", "n_frac_active_samples")


class RowStream(Protocol):
    """Rows without end, float32 [batch_rows, D], and their state between two batches (``ActivationStream``)."""

    def __next__(self) -> Tensor: ...
    def state(self) -> dict[str, Tensor]: ...
    def restore(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass
class Progress:
    """The lines of progress.jsonl up to the step where the run stands."""

    file: Path
    lines: list[dict[str, Any]]

    @classmethod
    def read(cls, file: Path, step: int) -> Progress:
        """The lines up to this step; those of steps that are done again are dropped."""
        found = [json.loads(line) for line in file.read_text().splitlines()] if step and file.exists() else []
        return cls(file, [line for line in found if line["step"] <= step])

    def add(self, line: dict[str, Any]) -> None:
        self.lines.append(line)
        replace(self.file, ("\n".join(json.dumps(line) for line in self.lines) + "\n").encode())


def need_sae_lens() -> None:
    """Raises MissingDependency where sae-lens is not installed."""
    try:
        import sae_lens  # noqa: F401
    except ImportError as error:
        raise MissingDependency("training an SAE needs sae-lens: pip install 'saerl-fast[sae-lens]'") from error


def fit(
    stream: RowStream,
    recipe: Recipe,
    folder: Path,
    *,
    checkpoint_every: int,
    heads: bool = False,
    progress: bool = True,
) -> SAETrainer[Any, Any]:
    """Train, or go on from the folder's checkpoint; returns sae-lens's trainer after the last step.

    Every ``checkpoint_every`` steps, and after the last, the checkpoint is replaced and progress.jsonl has a line
    more. The first batch of the stream is not trained on: its mean is where b_dec begins. heads: the rows are
    attention's z, which sae-lens keeps by head. The global torch seed is restored.
    """
    need_sae_lens()
    trainer = _begin_or_resume(stream, recipe, folder / CHECKPOINT, heads)
    lines = Progress.read(folder / PROGRESS, trainer.n_training_steps)
    bar = tqdm(
        total=recipe.steps * recipe.batch_rows,
        initial=trainer.n_training_samples,
        desc="train-sae",
        unit="token",
        unit_scale=True,
        disable=not progress,
    )
    with bar:
        while trainer.n_training_steps < recipe.steps:
            trainer.maybe_reset_sparsity()
            output = trainer.step(next(stream))
            trainer.n_training_steps += 1
            bar.update(recipe.batch_rows)
            if trainer.n_training_steps % checkpoint_every == 0 or trainer.n_training_steps == recipe.steps:
                line = _progress_line(trainer, output)
                bar.set_postfix(explained=f"{line['explained_variance']:.3f}", dead=f"{line['dead_share']:.1%}")
                lines.add(line)
                write_checkpoint(folder / CHECKPOINT, *_state(trainer, stream))
    return trainer


def export(trainer: SAETrainer[Any, Any], folder: Path, metadata: Mapping[str, Any]) -> None:
    """The trained SAE as the folder that sae-lens's ``save_inference_model`` writes, each file whole or not there."""
    trainer.set_final_sae_metadata()
    sae = trainer.sae
    for key, value in metadata.items():
        setattr(sae.cfg.metadata, key, value)
    weights = {name: tensor.detach().clone() for name, tensor in sae.state_dict().items()}
    sae.process_state_dict_for_saving_inference(weights)
    replace(folder / WEIGHTS_FILE, save({name: tensor.cpu().contiguous() for name, tensor in weights.items()}))
    settings = {**sae.cfg.get_inference_sae_cfg_dict(), "device": "cpu"}
    replace(folder / CONFIG_FILE, (json.dumps(settings, indent=1, sort_keys=True) + "\n").encode())


def _begin_or_resume(stream: RowStream, recipe: Recipe, checkpoint: Path, heads: bool) -> SAETrainer[Any, Any]:
    if not checkpoint.exists():
        return _make_trainer(stream, recipe, next(stream).mean(dim=0), heads)
    numbers, tensors = read_checkpoint(checkpoint)
    try:
        trainer = _make_trainer(stream, recipe, tensors["sae.b_dec"], heads)
        _restore(trainer, stream, numbers, tensors)
    except (KeyError, RuntimeError) as error:
        raise CorruptStoreError(
            f"{checkpoint}: not a checkpoint of this run ({error}); delete it to begin again"
        ) from (error)
    logger.info("train-sae: going on after step %d of %d", trainer.n_training_steps, recipe.steps)
    return trainer


def _make_trainer(stream: RowStream, recipe: Recipe, b_dec: Tensor, heads: bool) -> SAETrainer[Any, Any]:
    from sae_lens.config import SAETrainerConfig
    from sae_lens.saes.batchtopk_sae import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    kinds = {
        "topk": (TopKTrainingSAE, TopKTrainingSAEConfig),
        "batchtopk": (BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig),
    }
    make, make_config = kinds[recipe.kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        sae = make(
            make_config(
                d_in=len(b_dec),
                d_sae=recipe.width,
                k=recipe.k,
                device="cpu",
                reshape_activations="hook_z" if heads else "none",
            )
        )
    sae.b_dec.data = b_dec.to("cpu", torch.float32)
    config = SAETrainerConfig(
        total_training_samples=recipe.steps * recipe.batch_rows,
        train_batch_size_samples=recipe.batch_rows,
        lr=recipe.lr,
        lr_end=recipe.lr / 10,
        lr_warm_up_steps=recipe.steps // 20,
        lr_decay_steps=recipe.steps // 5,
        device=str(b_dec.device),
    )
    return SAETrainer(config, sae.to(config.device), stream)


def _state(trainer: SAETrainer[Any, Any], stream: RowStream) -> tuple[dict[str, int], dict[str, Tensor]]:
    tensors = {f"sae.{name}": tensor for name, tensor in trainer.sae.state_dict().items()}
    for name, parameter in trainer.sae.named_parameters():
        tensors |= {f"adam.{name}.{moment}": trainer.optimizer.state[parameter][moment] for moment in MOMENTS}
    tensors |= {f"counts.{name}": getattr(trainer, name) for name in COUNTS}
    tensors |= {f"stream.{name}": tensor for name, tensor in stream.state().items()}
    return {name: int(getattr(trainer, name)) for name in NUMBERS}, tensors


def _restore(
    trainer: SAETrainer[Any, Any], stream: RowStream, numbers: Mapping[str, int], tensors: Mapping[str, Tensor]
) -> None:
    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    trainer.sae.load_state_dict(under("sae."))
    for name, tensor in under("counts.").items():
        setattr(trainer, name, tensor.to(trainer.cfg.device))
    for name in NUMBERS:
        setattr(trainer, name, numbers[name])
    steps = numbers["n_training_steps"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler.step\(\)` before")
        for _ in range(steps):
            trainer.lr_scheduler.step()
            for scheduler in trainer.coefficient_schedulers.values():
                scheduler.step()
    moments = under("adam.")
    trainer.optimizer.load_state_dict(
        {
            "state": {
                place: {
                    "step": torch.tensor(float(steps)),
                    **{moment: moments[f"{name}.{moment}"] for moment in MOMENTS},
                }
                for place, (name, _) in enumerate(trainer.sae.named_parameters())
            },
            "param_groups": trainer.optimizer.state_dict()["param_groups"],
        }
    )
    stream.restore(under("stream."))


def _progress_line(trainer: SAETrainer[Any, Any], output: Any) -> dict[str, Any]:
    """Figures of the step's batch; NonFiniteError where the training has run away, before it is committed."""
    figures = trainer.build_train_step_log_dict(output=output, n_training_samples=trainer.n_training_samples)
    weights = all(bool(tensor.isfinite().all()) for tensor in trainer.sae.state_dict().values())
    loss = float(figures["losses/overall_loss"])
    if not (weights and loss < float("inf")):
        raise NonFiniteError(
            f"train-sae: NaN or infinity by step {trainer.n_training_steps} (loss {loss}). The activations hold such "
            "values, or lr is too high; the last checkpoint is from before"
        )
    return {
        "step": trainer.n_training_steps,
        "tokens": trainer.n_training_samples,
        "loss": loss,
        "explained_variance": float(figures["metrics/explained_variance"]),
        "l0": float(figures["metrics/l0"]),
        "dead_share": float(figures["sparsity/dead_features"]) / trainer.sae.cfg.d_sae,
        "lr": float(figures["details/current_learning_rate"]),
    }
