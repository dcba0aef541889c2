"""SAEs of EleutherAI sparsify: ``cfg.json`` beside ``sae.safetensors``, a TopK autoencoder or transcoder.

Its files hold encoder.weight [M, D], encoder.bias, W_dec [M, D_out] and b_dec; ``num_latents: 0`` means
``expansion_factor`` times D. It applies ReLU before it selects, which gives the same features as after: what ReLU
cuts is 0 either way. It subtracts b_dec, but for transcoders.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from saerl_fast.errors import FormatError
from saerl_fast.formats.sae_lens_config import check_metadata
from saerl_fast.formats.safetensors_file import read_json, read_tensors
from saerl_fast.sae import SAE

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae.safetensors"
_TENSORS = ("encoder.weight", "encoder.bias", "W_dec", "b_dec", "W_skip")


def read_folder(folder: Path) -> SAE:
    """The SAE of a sparsify folder; UnsafeFileError or FormatError for what is not one."""
    config = read_json(folder / CONFIG_FILE)
    tensors = read_tensors(folder / WEIGHTS_FILE, names=_TENSORS)
    if missing := sorted(set(_TENSORS[:4]) - set(tensors)):
        raise FormatError(f"{folder}: a sparsify SAE needs the tensors {missing}, which are missing")
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise FormatError(f"{folder}: {name} holds NaN or infinity")
    activation = config.get("activation", "topk")
    if activation != "topk" or config.get("signed"):
        raise FormatError(
            f"{folder}: activation {'signed' if config.get('signed') else activation!r} is not supported; "
            "supported is topk (groupmax takes the largest of each group, not of all)"
        )
    w_enc = tensors["encoder.weight"]
    d_in, k = config.get("d_in"), config.get("k")
    latents = config.get("num_latents") or _whole(d_in) * _whole(config.get("expansion_factor"))
    if w_enc.ndim != 2 or [latents, d_in] != list(w_enc.shape):
        raise FormatError(
            f"{folder}: encoder.weight must be [num_latents, d_in] = {[latents, d_in]} as {CONFIG_FILE} says; "
            f"got {list(w_enc.shape)}"
        )
    if type(k) is not int or not 1 <= k <= len(w_enc):
        raise FormatError(f"{folder}: k must be a whole number from 1 to {len(w_enc)}; got {k!r}")
    transcoder = bool(config.get("transcode", False))
    if "W_skip" in tensors and not transcoder:
        raise FormatError(f"{folder}: W_skip goes with transcode: true; {CONFIG_FILE} says false")
    return SAE(
        w_enc=w_enc,
        b_enc=tensors["encoder.bias"],
        w_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        kind="topk",
        k=k,
        apply_b_dec=not transcoder,
        transcoder=transcoder,
        w_skip=tensors.get("W_skip"),
        metadata=_metadata(folder),
    )


def _whole(found: Any) -> int:
    return found if type(found) is int and found > 0 else 0


def _metadata(folder: Path) -> dict[str, Any]:
    """The folder's name is the hook ("layers.12", "layers.12.mlp"); config.json of the run, beside it, has the rest."""
    run = folder.parent / "config.json"
    settings = read_json(run) if run.is_file() else {}
    metadata: dict[str, Any] = {"format": "sparsify"}
    if settings.get("model") is not None:
        metadata["model_name"] = settings["model"]
    if settings.get("ctx_len") is not None:
        metadata["context_size"] = settings["ctx_len"]
    layer = re.fullmatch(r"layers\.(\d{1,4})(\.mlp)?", folder.name)
    if layer is not None:
        metadata["hook_name"] = f"blocks.{layer[1]}.{'hook_mlp_out' if layer[2] else 'hook_resid_post'}"
        metadata["hf_hook_name"] = f"model.{folder.name}"
    elif folder.name == "embed_tokens":
        metadata["hook_name"] = "hook_embed"
    check_metadata(run, metadata)
    return metadata
