"""Llama Scope: ``hyperparams.json`` and ``checkpoints/final.safetensors``, JumpReLU with one threshold for all.

It was trained on x s with s = sqrt(D) / (mean |x| of its data). The scale is folded: W_enc is multiplied by s, W_dec
and b_dec are divided by it; b_enc stays. The threshold is multiplied by s too: the published number is one for
unscaled activations.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from saerl_fast.errors import FormatError
from saerl_fast.formats.sae_lens_config import check_metadata
from saerl_fast.formats.safetensors_file import read_json, read_tensors
from saerl_fast.sae import SAE

CONFIG_FILE = "hyperparams.json"
WEIGHTS_FILE = "checkpoints/final.safetensors"
_TENSORS = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")


def read_folder(folder: Path) -> SAE:
    """The SAE of a Llama Scope folder; UnsafeFileError or FormatError for what is not one."""
    config = read_json(folder / CONFIG_FILE)
    tensors = read_tensors(folder / WEIGHTS_FILE, names=_TENSORS)
    if missing := sorted(set(_TENSORS) - set(tensors)):
        raise FormatError(f"{folder}: a Llama Scope SAE needs the tensors {missing}, which are missing")
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise FormatError(f"{folder}: {name} holds NaN or infinity")
    if config.get("use_glu_encoder") or str(config.get("act_fn", "jumprelu")).lower() not in ("jumprelu", "relu"):
        raise FormatError(f"{folder}: only plain encoders with act_fn jumprelu or relu are supported")
    place = config.get("hook_point_in")
    if config.get("hook_point_out", place) != place:
        raise FormatError(
            f"{folder}: reads {place!r:.80} and writes {config['hook_point_out']!r:.80}; transcoders of this format "
            "are not supported, only SAEs with one hook point"
        )
    d_in, d_sae = config.get("d_model"), config.get("d_sae")
    w_enc = tensors["encoder.weight"]
    if list(w_enc.shape) != [d_sae, d_in]:
        raise FormatError(
            f"{folder}: encoder.weight must be [d_sae, d_model] = {[d_sae, d_in]} as {CONFIG_FILE} says; "
            f"got {list(w_enc.shape)}"
        )
    average = config.get("dataset_average_activation_norm")
    norm = _positive(
        folder, "dataset_average_activation_norm", average.get("in") if isinstance(average, dict) else None
    )
    theta = config.get("jump_relu_threshold")
    theta = 0.0 if theta == 0 else _positive(folder, "jump_relu_threshold", theta)
    scale = w_enc.shape[1] ** 0.5 / norm
    metadata = {
        "format": "llama_scope",
        "model_name": config.get("model_name") or "meta-llama/Llama-3.1-8B",
        "hook_name": place,
        "context_size": 1024,
        "prepend_bos": True,
    }
    check_metadata(folder, metadata)
    # in float32: the published weights are bfloat16, and the product of two such numbers is not
    return SAE(
        w_enc=w_enc.float() * scale,
        b_enc=tensors["encoder.bias"].float(),
        w_dec=(tensors["decoder.weight"].float() / scale).t().contiguous(),
        b_dec=tensors["decoder.bias"].float() / scale,
        kind="jumprelu",
        threshold=torch.full((len(w_enc),), theta * scale),
        apply_b_dec=False,
        metadata=metadata,
    )


def _positive(folder: Path, name: str, found: Any) -> float:
    if not isinstance(found, (int, float)) or isinstance(found, bool) or not 0 < found < 1e6:
        raise FormatError(f"{folder}: {name} must be a positive number; got {found!r}")
    return float(found)
