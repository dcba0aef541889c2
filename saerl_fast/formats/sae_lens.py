"""SAE folders of sae-lens: ``cfg.json`` beside ``sae_weights.safetensors``, read without importing sae-lens."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from saerl_fast.durable import replace
from saerl_fast.errors import FormatError
from saerl_fast.formats.sae_lens_config import ARCHITECTURES, NORMS, Architecture, architecture_of, modern_config
from saerl_fast.formats.safetensors_file import read_json, read_tensors
from saerl_fast.kinds import Kind, check_arguments, instance, is_path
from saerl_fast.sae import SAE

CONFIG_FILE = "cfg.json"
WEIGHTS_FILE = "sae_weights.safetensors"
SAVING = {"sae": instance("an SAE", SAE), "path": Kind("a folder to write", is_path)}
"""What each argument of save_sae may be."""
SAE_LENS_VERSION = "6.54.12"

_NAMES = {"b_enc": "b_enc", "threshold": "threshold", "r_mag": "r_mag", "b_mag": "b_mag", "W_skip": "w_skip"}


def read_folder(folder: Path) -> SAE:
    """The SAE of a sae-lens folder, of any version; UnsafeFileError or FormatError for what is not one."""
    config = modern_config(folder, read_json(folder / CONFIG_FILE))
    architecture = architecture_of(folder, config)
    names = (*architecture.tensors, "scaling_factor")
    return build_sae(folder, config, read_tensors(folder / WEIGHTS_FILE, names=names))


def build_sae(origin: object, config: dict[str, Any], tensors: Mapping[str, Tensor]) -> SAE:
    """An SAE from settings in the form of 6.0 and tensors in the layout of sae-lens (W_enc [D, M], W_dec [M, D_out]).

    origin: what error messages name.
    """
    architecture = architecture_of(origin, config)
    _check_tensors(origin, config, architecture, tensors)
    norm = str(config.get("normalize_activations") or "none")
    if norm not in NORMS:
        raise FormatError(f"{origin}: normalize_activations {norm!r} is not supported; supported are {sorted(NORMS)}")
    reshape = config.get("reshape_activations") or "none"
    if reshape not in ("none", "hook_z"):
        raise FormatError(f"{origin}: reshape_activations {reshape!r} is not supported; supported are none and hook_z")
    topk = architecture.kind in ("topk", "abstopk")
    found = {ours: tensors[name] for name, ours in _NAMES.items() if name in tensors}
    if "b_gate" in tensors:
        found["b_enc"] = tensors["b_gate"]
    return SAE(
        w_enc=tensors["W_enc"].t().contiguous(),
        w_dec=tensors["W_dec"],
        b_dec=tensors["b_dec"],
        **found,
        kind=architecture.kind,
        k=_k(origin, config) if topk else None,
        apply_b_dec=not architecture.transcoder and bool(config.get("apply_b_dec_to_input", True)),
        rescale_by_decoder_norm=topk and bool(config.get("rescale_acts_by_decoder_norm", False)),
        input_norm=NORMS[norm],
        flatten_heads=reshape == "hook_z",
        transcoder=architecture.transcoder,
        metadata=dict(config["metadata"]),
    )


def save_sae(sae: SAE, path: str | os.PathLike[str]) -> None:
    """Write the SAE as a sae-lens 6 folder; ``sae_lens.SAE.load_from_disk`` and ``load_sae`` read it back.

    Raises FormatError for a combination that sae-lens has no architecture for (a TopK transcoder), DiskFullError where
    there is no room; each file is there whole or not at all.
    """
    from safetensors.torch import save

    check_arguments({"sae": sae, "path": path}, SAVING)
    folder = Path(path)
    config = _config(sae)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {"W_enc": sae.w_enc.t(), "W_dec": sae.w_dec, "b_dec": sae.b_dec}
    tensors["b_gate" if sae.kind == "gated" else "b_enc"] = sae.b_enc
    for name, ours in _NAMES.items():
        if name != "b_enc" and (tensor := getattr(sae, ours)) is not None:
            tensors[name] = tensor
    replace(folder / WEIGHTS_FILE, save({name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}))
    replace(folder / CONFIG_FILE, json.dumps(config, indent=1).encode())


def _check_tensors(
    origin: object, config: dict[str, Any], architecture: Architecture, tensors: Mapping[str, Tensor]
) -> None:
    if missing := sorted(set(architecture.tensors) - set(tensors)):
        raise FormatError(f"{origin}: a {config['architecture']} SAE needs the tensors {missing}, which are missing")
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise FormatError(f"{origin}: {name} holds NaN or infinity")
    scaling = tensors.get("scaling_factor")
    if scaling is not None and not torch.allclose(scaling, torch.ones_like(scaling)):
        raise FormatError(
            f"{origin}: scaling_factor (fine-tuning of sae-lens before 6.0) is not one everywhere; "
            "multiply it into the weights first"
        )
    w_enc = tensors["W_enc"]
    stated = (config.get("d_in"), config.get("d_sae"))
    if w_enc.ndim != 2 or stated != tuple(w_enc.shape):
        raise FormatError(
            f"{origin}: W_enc must be [d_in, d_sae] = {list(stated)} as the configuration says; got {list(w_enc.shape)}"
        )


def _k(origin: object, config: dict[str, Any]) -> int:
    k, d_sae = config.get("k"), config["d_sae"]
    if type(k) is not int or not 1 <= k <= d_sae:
        raise FormatError(f"{origin}: k must be a whole number from 1 to d_sae = {d_sae}; got {k!r}")
    return k


def _config(sae: SAE) -> dict[str, Any]:
    name = next(
        (
            name
            for name, known in ARCHITECTURES.items()
            if (known.kind, known.transcoder) == (sae.kind, sae.transcoder)
            and ("W_skip" in known.tensors) == (sae.w_skip is not None)
        ),
        None,
    )
    if name is None:
        raise FormatError(
            f"sae-lens has no architecture for a {sae.kind} transcoder; supported: {sorted(ARCHITECTURES)}"
        )
    config = {
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": str(sae.dtype).removeprefix("torch."),
        "device": "cpu",
        "architecture": name,
        "apply_b_dec_to_input": sae.apply_b_dec,
        "normalize_activations": sae.input_norm,
        "reshape_activations": "hook_z" if sae.flatten_heads else "none",
        "metadata": {"sae_lens_version": SAE_LENS_VERSION, **sae.metadata},
    }
    if sae.kind in ("topk", "abstopk"):
        config |= {"k": sae.k, "rescale_acts_by_decoder_norm": sae.rescale_by_decoder_norm}
    if sae.transcoder:
        config["d_out"] = sae.d_out
    return config
