"""Gemma Scope: JumpReLU SAEs and transcoders as ``params.npz`` (Gemma 2), without settings beside it.

What it was trained on stands in the names of the folders alone, such as
``gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71/params.npz``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from saerl_fast.errors import FormatError
from saerl_fast.formats.npz_file import read_npz
from saerl_fast.sae import SAE

WEIGHTS_FILE = "params.npz"
_TENSORS = ("w_enc", "w_dec", "b_enc", "b_dec", "threshold", "scaling_factor")
_REPOSITORY = re.compile(r"gemma-scope-(2b|9b|27b)-(pt|it)-(res|mlp|att|transcoders)")
_HOOKS = {
    "res": "blocks.{}.hook_resid_post",
    "mlp": "blocks.{}.hook_mlp_out",
    "att": "blocks.{}.attn.hook_z",
    "transcoders": "blocks.{}.ln2.hook_normalized",
}


def read_folder(folder: Path) -> SAE:
    """The SAE of a folder with params.npz: w_enc [D, M], w_dec [M, D_out], b_enc, b_dec, threshold [M]."""
    path = folder / WEIGHTS_FILE
    found = read_npz(path)
    tensors = {name.lower(): tensor.float() for name, tensor in found.items()}
    if len(tensors) < len(found):
        raise FormatError(f"{path}: an array comes twice, in capitals and without: {sorted(found)}")
    if unexpected := sorted(set(tensors) - set(_TENSORS)):
        raise FormatError(f"{path}: unexpected arrays {unexpected}; allowed are {sorted(_TENSORS)}")
    if missing := sorted(set(_TENSORS[:5]) - set(tensors)):
        raise FormatError(f"{path}: a Gemma Scope SAE needs the arrays {missing}, which are missing")
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise FormatError(f"{path}: {name} holds NaN or infinity")
    scaling = tensors.pop("scaling_factor", torch.ones(1))
    if not torch.allclose(scaling, torch.ones_like(scaling)):
        raise FormatError(f"{path}: scaling_factor is not one everywhere; multiply it into the weights first")
    w_enc, w_dec = tensors["w_enc"], tensors["w_dec"]
    if w_enc.ndim != 2 or w_enc.shape[1] != len(tensors["b_enc"].flatten()):
        raise FormatError(f"{path}: w_enc must be [d_in, d_sae], d_sae that of b_enc; got {list(w_enc.shape)}")
    metadata = _metadata(folder)
    if metadata["hook_name"] == "hook_embed":
        # these were trained on embeddings as the model scales them, by sqrt(d_in)
        root = w_enc.shape[0] ** 0.5
        w_enc, w_dec = w_enc / root, w_dec * root
    transcoder = "ln2" in str(metadata["hook_name"])
    return SAE(
        w_enc=w_enc.t().contiguous(),
        b_enc=tensors["b_enc"],
        w_dec=w_dec,
        b_dec=tensors["b_dec"],
        kind="jumprelu",
        threshold=tensors["threshold"],
        apply_b_dec=False,
        flatten_heads="hook_z" in str(metadata["hook_name"]),
        transcoder=transcoder,
        metadata={name: value for name, value in metadata.items() if value is not None},
    )


def _metadata(folder: Path) -> dict[str, Any]:
    """Model, hook and promised L0 from the names of the folders; what they do not say is None."""
    way = "/".join(folder.resolve().parts)
    layer = re.search(r"layer_(\d{1,4})", way)
    repository = _REPOSITORY.search(way)
    hook = None
    if "/embedding/" in f"{way}/":
        hook = "hook_embed"
    elif layer is not None and repository is not None:
        hook = _HOOKS[repository[3]].format(layer[1])
    l0 = re.search(r"average_l0_(\d{1,6})", way)
    name = None
    if repository is not None:
        name = f"google/gemma-2-{repository[1]}" + ("-it" if repository[2] == "it" else "")
    return {
        "format": "gemma_scope",
        "model_name": name,
        "hook_name": hook,
        "context_size": 1024,
        "prepend_bos": True,
        "l0": None if l0 is None else int(l0[1]),
    }
