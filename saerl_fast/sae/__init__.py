"""What a sparse autoencoder is here, and how each kind of them encodes."""

from saerl_fast.kernels.input_norm import InputNorm
from saerl_fast.sae.autoencoder import SAE, Kind
from saerl_fast.sae.sanity import SAESanity, sanity

__all__ = ["SAE", "InputNorm", "Kind", "SAESanity", "sanity"]
