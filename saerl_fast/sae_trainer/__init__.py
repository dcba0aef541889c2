"""Training an SAE: our activations, sae-lens's trainer, a folder in which a run that was killed goes on."""

from saerl_fast.sae_trainer.recipe import Recipe
from saerl_fast.sae_trainer.run import TrainedSAE, train_sae

__all__ = ["Recipe", "TrainedSAE", "train_sae"]
