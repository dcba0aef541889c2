"""Llama Scope: ``hyperparams.json`` and ``checkpoints/final.safetensors``, JumpReLU with one threshold t for all.

It was trained on x s, s = sqrt(D) / (mean |x| of its data), to give back y r, r = sqrt(D) / (mean |y|); y is x, but for
a transcoder. With h = W_enc (x s) + b_enc, latent j is active where

    h_j |W_dec_j| / r > t      with sparsity_include_decoder_norm (published files have it)
    h_j / s > t                without

as OpenMOSS's own inference folds its parameters (standardize_parameters_of_dataset_norm, then unit decoder norms): t is
for unscaled activations. Features are h, as sae-lens has them; it leaves |W_dec_j| out: where rows of W_dec are
not of norm one, other latents are active there.

Here s is multiplied into W_enc, r divided out of W_dec and b_dec, and each latent gets a threshold of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saerl_fast.errors import FormatError
from saerl_fast.formats.sae_lens_config import check_metadata
from saerl_fast.formats.safetensors_file import read_json, read_tensors
from saerl_fast.sae import SAE

CONFIG_FILE = "hyperparams.json"
WEIGHTS_FILE = "checkpoints/final.safetensors"
_TENSORS = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
# what another value of a setting would change, and nothing here would do
_ONLY: dict[str, tuple[Any, ...]] = {
    "use_glu_encoder": (False, None),
    "act_fn": ("jumprelu", "relu"),
    "norm_activation": ("dataset-wise",),
    "apply_decoder_bias_to_pre_encoder": (False, None),
}


def read_folder(folder: Path) -> SAE:
    """The SAE of a Llama Scope folder; UnsafeFileError or FormatError for what is not one."""
    config = read_json(folder / CONFIG_FILE)
    tensors = read_tensors(folder / WEIGHTS_FILE, names=_TENSORS)
    if missing := sorted(set(_TENSORS) - set(tensors)):
        raise FormatError(f"{folder}: a Llama Scope SAE needs the tensors {missing}, which are missing")
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise FormatError(f"{folder}: {name} holds NaN or infinity")
    for name, served in _ONLY.items():
        found = config.get(name, served[0])
        if (found.lower() if isinstance(found, str) else found) not in served:
            raise FormatError(f"{folder}: {name} {found!r:.80} is not supported; supported is {served[0]!r}")
    d_in, d_sae = config.get("d_model"), config.get("d_sae")
    if list(tensors["encoder.weight"].shape) != [d_sae, d_in]:
        raise FormatError(
            f"{folder}: encoder.weight must be [d_sae, d_model] = {[d_sae, d_in]} as {CONFIG_FILE} says; "
            f"got {list(tensors['encoder.weight'].shape)}"
        )
    if tensors["decoder.weight"].ndim != 2:
        raise FormatError(
            f"{folder}: decoder.weight must be [d_out, d_sae]; got {list(tensors['decoder.weight'].shape)}"
        )
    reads = config.get("hook_point_in")
    writes = config.get("hook_point_out", reads)
    transcoder = writes != reads
    metadata = {
        "format": "llama_scope",
        "model_name": config.get("model_name") or "meta-llama/Llama-3.1-8B",
        "hook_name": reads,
        **({"hook_name_out": writes} if transcoder else {}),
        "context_size": 1024,
        "prepend_bos": True,
        **_promise(folder, config),
    }
    check_metadata(folder, metadata)
    average = config.get("dataset_average_activation_norm")
    inner = _scale(folder, average, "in", tensors["encoder.weight"].shape[1])
    outer = _scale(folder, average, "out", len(tensors["decoder.bias"].flatten())) if transcoder else inner
    # in float32: the published weights are bfloat16, and the product of two such numbers is not
    w_dec = tensors["decoder.weight"].float().t().contiguous()
    return SAE(
        w_enc=tensors["encoder.weight"].float() * inner,
        b_enc=tensors["encoder.bias"].float(),
        w_dec=w_dec / outer,
        b_dec=tensors["decoder.bias"].float() / outer,
        kind="jumprelu",
        threshold=_thresholds(folder, config, w_dec, inner, outer),
        apply_b_dec=False,
        transcoder=transcoder,
        metadata=metadata,
    )


def _promise(folder: Path, config: dict[str, Any]) -> dict[str, int]:
    """The k of the TopK that was trained, for which the threshold was chosen."""
    k = config.get("top_k")
    if k is None:
        return {}
    if type(k) is not int or not 1 <= k <= config["d_sae"]:
        raise FormatError(f"{folder}: top_k must be a whole number from 1 to d_sae = {config['d_sae']}; got {k!r:.80}")
    return {"l0": k}


def _thresholds(folder: Path, config: dict[str, Any], w_dec: Tensor, inner: float, outer: float) -> Tensor:
    """What h must exceed, by latent. One without a decoder gives nothing back and is never active, as at OpenMOSS."""
    theta = config.get("jump_relu_threshold")
    if theta != 0 or isinstance(theta, bool):
        theta = _positive(folder, "jump_relu_threshold", theta)
    if str(config.get("act_fn", "jumprelu")).lower() == "relu":
        theta = 0.0
    counts = config.get("sparsity_include_decoder_norm", False)
    if not isinstance(counts, bool):
        raise FormatError(f"{folder}: sparsity_include_decoder_norm must be true or false; got {counts!r:.80}")
    if not counts:
        return torch.full((len(w_dec),), theta * inner)
    lengths = torch.linalg.vector_norm(w_dec, dim=1)
    most = torch.finfo(lengths.dtype).max
    return torch.where(lengths > 0, theta * outer / lengths, most).clamp(max=most)


def _scale(folder: Path, average: Any, side: str, width: int) -> float:
    """sqrt(width) over the mean length of the activations of one side."""
    found = average.get(side) if isinstance(average, dict) else None
    return float(width**0.5 / _positive(folder, f"dataset_average_activation_norm[{side!r}]", found))


def _positive(folder: Path, name: str, found: Any) -> float:
    if not isinstance(found, (int, float)) or isinstance(found, bool) or not 1e-30 < found < 1e6:
        raise FormatError(f"{folder}: {name} must be a positive number, below a million; got {found!r}")
    return float(found)
