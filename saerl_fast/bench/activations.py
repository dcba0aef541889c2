"""Real activations and the SAE that reads them, in place of made-up ones.

write_activations("activations.safetensors", texts, model, sae)     # some thousand tokens through our own stream
saerl bench --only encode --activations activations.safetensors --sae SAE_FOLDER
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from saerl_fast.bench.data import Encoder
from saerl_fast.errors import InputError
from saerl_fast.sae import SAE

NAME = "activations"
MASSIVE = 100.0
"""By how much a massive channel is larger."""


class Reading(NamedTuple):
    """What an encode row works on."""

    encoder: Encoder
    k: int


def write_activations(
    file: str | os.PathLike[str], texts: Sequence[str], model: str, sae: str, rows: int = 2048, max_length: int = 256
) -> None:
    """Write the first `rows` activations of a shuffled stream over the texts, float32 [rows, D], as safetensors."""
    from safetensors.torch import save_file

    from saerl_fast.extract.reader import make_reader
    from saerl_fast.extract.stream import ActivationStream
    from saerl_fast.formats import load_sae

    found = next(
        ActivationStream(
            texts, make_reader(model, load_sae(sae)), batch_rows=rows, buffer_rows=4 * rows, max_length=max_length
        )
    )
    save_file({NAME: found.float().contiguous()}, file)


def reading(activations: str, sae: str, massive: int) -> Reading:
    """The activations of a file and the weights of a TopK SAE; `massive` channels, evenly spaced, are made larger.

    Input norm and decoder norms are applied beforehand, to activations and weights, so that baselines need neither.
    Raises InputError for an SAE of another kind, FormatError and UnsafeFileError for a file that is not as wanted.
    """
    from saerl_fast.formats import load_sae
    from saerl_fast.formats.safetensors_file import read_tensors

    found = load_sae(sae).to(dtype=torch.float32)
    w_enc, b_enc, b_dec, k = folded(found, sae)
    tensors = read_tensors(activations, names={NAME})
    if NAME not in tensors:
        raise InputError(f"--activations {activations} must hold one tensor, {NAME!r} [N, D]; got {sorted(tensors)}")
    x = found.prepare(tensors[NAME])
    channels = torch.arange(massive) * (found.d_in // max(1, massive))
    x[:, channels] *= MASSIVE
    return Reading(Encoder(x, w_enc, b_enc, b_dec), k)


class Folded(NamedTuple):
    """h = (x - b_dec) w_enc^T + b_enc, and the number of latents kept."""

    w_enc: Tensor
    b_enc: Tensor
    b_dec: Tensor
    k: int


def folded(sae: SAE, name: str) -> Folded:
    """The encoder of a TopK SAE with its decoder norms multiplied in; raises InputError for one of another kind."""
    if sae.kind != "topk" or sae.k is None:
        raise InputError(f"--sae must be a TopK SAE, as the rows it is read by are; {name} is of kind {sae.kind}")
    scale = torch.ones(sae.d_sae) if sae.latent_scale is None else sae.latent_scale
    b_dec = sae.b_dec if sae.apply_b_dec else torch.zeros(sae.d_in)
    return Folded(sae.w_enc * scale[:, None], sae.b_enc * scale, b_dec, sae.k)
