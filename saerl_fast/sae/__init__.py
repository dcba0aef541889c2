"""What a sparse autoencoder is here, and how each kind of them encodes."""

from saerl_fast.sae.autoencoder import LAYER_NORM_EPS, SAE, InputNorm, Kind
from saerl_fast.sae.sanity import SAESanity, sanity

__all__ = ["LAYER_NORM_EPS", "SAE", "InputNorm", "Kind", "SAESanity", "sanity"]
