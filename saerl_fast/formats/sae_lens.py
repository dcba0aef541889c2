"""SAE folders of sae-lens 6: ``cfg.json`` beside ``sae_weights.safetensors``, read without importing sae-lens."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from saerl_fast.errors import FormatError, UnsafeFileError
from saerl_fast.formats.safetensors_file import read_json, read_tensors
from saerl_fast.sae import SAE, InputNorm, Kind

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
SAE_LENS_VERSION = "6.54.12"

_TENSORS = {
    "topk": {"W_enc", "b_enc", "W_dec", "b_dec"},
    "standard": {"W_enc", "b_enc", "W_dec", "b_dec"},
    "jumprelu": {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"},
}
# folded into the weights before saving, or a no-op at run time (sae-lens does nothing for it either)
_NORMS: dict[str, InputNorm] = {
    "none": "none",
    "expected_average_only_in": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm_rescale",
}


def load_sae(
    path: str | os.PathLike[str],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> SAE:
    """An SAE from a sae-lens 6 folder (architectures topk, jumprelu, standard).

    path: the folder. device, dtype: where and in what the weights are wanted (default: CPU, as stored).
    Raises UnsafeFileError for anything but JSON and well-formed safetensors (pickles and ``.pt`` files
    are never loaded), FormatError for an architecture or setting that is not supported.
    """
    folder = Path(path)
    if folder.is_file():
        raise UnsafeFileError(
            f"{folder}: a folder with {CONFIG_FILE} and {WEIGHTS_FILE} is wanted; got a single file. "
            "Pickled weights (.pt, .bin, .ckpt) are never loaded."
        )
    if not folder.is_dir():
        raise FormatError(
            f"{folder}: no such folder; a sae-lens folder with {CONFIG_FILE} and {WEIGHTS_FILE} is wanted"
        )
    _refuse_pickled_weights(folder)
    config = read_json(folder / CONFIG_FILE)
    kind = _kind(folder, config)
    tensors = read_tensors(folder / WEIGHTS_FILE, names=_TENSORS[kind])
    return _build(folder, config, kind, tensors).to(device, dtype)


def save_sae(sae: SAE, path: str | os.PathLike[str]) -> None:
    """Write the SAE as a sae-lens 6 folder; ``sae_lens.SAE.load_from_disk`` and ``load_sae`` read it back."""
    from safetensors.torch import save_file

    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        "W_enc": sae.w_enc.t().contiguous(),
        "b_enc": sae.b_enc.contiguous(),
        "W_dec": sae.w_dec.contiguous(),
        "b_dec": sae.b_dec.contiguous(),
    }
    if sae.threshold is not None:
        tensors["threshold"] = sae.threshold.contiguous()
    save_file({name: tensor.cpu().clone() for name, tensor in tensors.items()}, folder / WEIGHTS_FILE)
    (folder / CONFIG_FILE).write_text(json.dumps(_config(sae), indent=1), encoding="utf-8")


def _refuse_pickled_weights(folder: Path) -> None:
    if (folder / WEIGHTS_FILE).exists():
        return
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in {".pt", ".pth", ".bin", ".ckpt", ".pkl", ".npz"})
    if pickled:
        raise UnsafeFileError(
            f"{folder}: {WEIGHTS_FILE} is wanted; found {pickled}, which can run code when loaded and are refused. "
            "Save the SAE with sae-lens (sae.save_model) first."
        )
    raise FormatError(f"{folder}: {WEIGHTS_FILE} is missing")


def _kind(folder: Path, config: dict[str, Any]) -> Kind:
    metadata = config.get("metadata")
    if not isinstance(metadata, dict):
        raise FormatError(
            f"{folder}: {CONFIG_FILE} has no object 'metadata', so it is of sae-lens before 6.0; "
            "load and save it once with sae-lens 6 to convert it"
        )
    major = re.match(r"v?(\d+)\.", str(metadata.get("sae_lens_version", "")))
    if major is not None and int(major[1]) < 6:
        raise FormatError(
            f"{folder}: written by sae-lens {metadata['sae_lens_version']}, before 6.0; convert it with 6"
        )
    size = metadata.get("context_size")
    if size is not None and (type(size) is not int or size < 1):
        raise FormatError(f"{folder}: context_size must be a positive whole number; got {size!r}")
    architecture = config.get("architecture")
    if architecture not in _TENSORS:
        raise FormatError(f"{folder}: architecture {architecture!r} is not supported; supported are {sorted(_TENSORS)}")
    return cast(Kind, architecture)


def _build(folder: Path, config: dict[str, Any], kind: Kind, tensors: dict[str, Tensor]) -> SAE:
    missing = sorted(_TENSORS[kind] - set(tensors))
    if missing:
        raise FormatError(f"{folder}: a {kind} SAE needs the tensors {missing}, which are missing")
    norm = config.get("normalize_activations") or "none"
    if norm not in _NORMS:
        raise FormatError(f"{folder}: normalize_activations {norm!r} is not supported; supported are {sorted(_NORMS)}")
    reshape = config.get("reshape_activations") or "none"
    if reshape not in ("none", "hook_z"):
        raise FormatError(f"{folder}: reshape_activations {reshape!r} is not supported")
    w_enc = tensors["W_enc"]
    stated = (config.get("d_in"), config.get("d_sae"))
    if w_enc.ndim != 2 or stated != tuple(w_enc.shape):
        raise FormatError(
            f"{folder}: W_enc must be [d_in, d_sae] = {list(stated)} as {CONFIG_FILE} says; got {list(w_enc.shape)}"
        )
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise FormatError(f"{folder}: {name} holds NaN or infinity")
    return SAE(
        w_enc=w_enc.t().contiguous(),
        b_enc=tensors["b_enc"],
        w_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        kind=kind,
        k=_k(folder, config) if kind == "topk" else None,
        threshold=tensors.get("threshold"),
        apply_b_dec=bool(config.get("apply_b_dec_to_input", True)),
        rescale_by_decoder_norm=kind == "topk" and bool(config.get("rescale_acts_by_decoder_norm", False)),
        input_norm=_NORMS[norm],
        flatten_heads=reshape == "hook_z",
        metadata=dict(config["metadata"]),
    )


def _k(folder: Path, config: dict[str, Any]) -> int:
    k, d_sae = config.get("k"), config["d_sae"]
    if type(k) is not int or not 1 <= k <= d_sae:
        raise FormatError(f"{folder}: k must be a whole number from 1 to d_sae = {d_sae}; got {k!r}")
    return k


def _config(sae: SAE) -> dict[str, Any]:
    config: dict[str, Any] = {
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": str(sae.dtype).removeprefix("torch."),
        "device": "cpu",
        "architecture": sae.kind,
        "apply_b_dec_to_input": sae.apply_b_dec,
        "normalize_activations": sae.input_norm,
        "reshape_activations": "hook_z" if sae.flatten_heads else "none",
        "metadata": {"sae_lens_version": SAE_LENS_VERSION, **sae.metadata},
    }
    if sae.kind == "topk":
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": sae.rescale_by_decoder_norm}
    return config
