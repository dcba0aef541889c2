"""The settings of a sae-lens SAE: architectures, and how the flat form before 6.0 reads."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from saerl_fast.errors import FormatError
from saerl_fast.sae import InputNorm, Kind

_PLAIN = ("W_enc", "b_enc", "W_dec", "b_dec")


@dataclass(frozen=True)
class Architecture:
    """What an architecture of sae-lens is here, and the tensors its files hold."""

    kind: Kind
    tensors: tuple[str, ...] = _PLAIN
    transcoder: bool = False


ARCHITECTURES = {
    "standard": Architecture("standard"),
    "topk": Architecture("topk"),
    "abstopk": Architecture("abstopk"),
    "jumprelu": Architecture("jumprelu", (*_PLAIN, "threshold")),
    "gated": Architecture("gated", ("W_enc", "b_gate", "r_mag", "b_mag", "W_dec", "b_dec")),
    "transcoder": Architecture("standard", transcoder=True),
    "skip_transcoder": Architecture("standard", (*_PLAIN, "W_skip"), transcoder=True),
    "jumprelu_transcoder": Architecture("jumprelu", (*_PLAIN, "threshold"), transcoder=True),
    "jumprelu_skip_transcoder": Architecture("jumprelu", (*_PLAIN, "threshold", "W_skip"), transcoder=True),
}
REFUSED = {
    "matching_pursuit": "it is iterative (each latent is chosen on what the ones before it left over), not one product",
    "temporal": "it attends over the whole sequence in order, and cannot read tokens one by one",
    "batchtopk": "it is a training checkpoint; save_inference_model of sae-lens writes it as jumprelu",
    "matryoshka_batchtopk": "it is a training checkpoint; save_inference_model of sae-lens writes it as jumprelu",
}
# folded into the weights before saving, or a no-op at run time (sae-lens does nothing for it either)
NORMS: dict[str, InputNorm] = {
    "none": "none",
    "expected_average_only_in": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm_rescale",
}
METADATA_KEYS = (
    "model_name", "model_class_name", "model_from_pretrained_kwargs", "hook_name", "hook_name_out", "hook_head_index",
    "hook_head_index_out", "hf_hook_name", "hf_hook_name_out", "prepend_bos", "exclude_special_tokens", "context_size",
    "seqpos_slice", "dataset_path", "neuronpedia_id", "sae_lens_version", "sae_lens_training_version",
)  # fmt: skip
_RENAMED = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index", "activation_fn_str": "activation_fn"}


def modern_config(origin: object, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration in the form of 6.0, whichever version wrote it; FormatError for what cannot be read."""
    metadata = config.get("metadata")
    inside = metadata if isinstance(metadata, dict) else {}
    version = str(config.get("sae_lens_version") or inside.get("sae_lens_version") or "")
    major = re.match(r"v?(\d+)\.", version)
    if major is None or int(major[1]) < 6:
        config = _from_before_6(origin, config)
    elif not isinstance(metadata, dict):
        raise FormatError(f"{origin}: the configuration of sae-lens {version} has no object 'metadata'")
    check_metadata(origin, config["metadata"])
    return config


def check_metadata(origin: object, metadata: dict[str, Any]) -> None:
    """Names are words and sizes are numbers; FormatError where they are not."""
    size = metadata.get("context_size")
    if size is not None and (type(size) is not int or size < 1):
        raise FormatError(f"{origin}: context_size must be a positive whole number; got {size!r}")
    for key in ("model_name", "hook_name", "hf_hook_name"):
        if not isinstance(metadata.get(key), (str, type(None))):
            raise FormatError(f"{origin}: {key} must be a string; got {metadata[key]!r}")


def architecture_of(origin: object, config: dict[str, Any]) -> Architecture:
    """The architecture the configuration names; FormatError, with the reason, for one that cannot be read."""
    name = str(config.get("architecture"))
    if name in REFUSED:
        raise FormatError(f"{origin}: architecture {name!r} is not supported: {REFUSED[name]}")
    if name not in ARCHITECTURES:
        raise FormatError(f"{origin}: architecture {name!r} is not supported; supported are {sorted(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def _from_before_6(origin: object, config: dict[str, Any]) -> dict[str, Any]:
    """A flat configuration: old names, booleans for norms, topk as an activation of the standard SAE."""
    flat = {_RENAMED.get(key, key): value for key, value in config.items() if key != "metadata"}
    flat |= config["metadata"] if isinstance(config.get("metadata"), dict) else {}
    architecture = flat.get("architecture") or "standard"
    activation = flat.get("activation_fn") or "relu"
    if activation not in ("relu", "topk"):
        raise FormatError(f"{origin}: activation {activation!r} is not supported; supported are relu and topk")
    k = flat.get("k")
    if activation == "topk":
        settings = flat.get("activation_fn_kwargs")
        k = settings.get("k", k) if isinstance(settings, dict) else k
        if k is None:
            raise FormatError(f"{origin}: activation topk without k in activation_fn_kwargs")
        architecture = "topk"
    norm = flat.get("normalize_activations") or "none"
    hook = flat.get("hook_name") or ""
    return {
        **flat,
        "architecture": architecture,
        "k": k,
        "apply_b_dec_to_input": flat.get("apply_b_dec_to_input", True),
        # True is what 6.0 calls by its name
        "normalize_activations": "expected_average_only_in" if norm is True else norm,
        "reshape_activations": flat.get("reshape_activations") or ("hook_z" if "hook_z" in str(hook) else "none"),
        "metadata": {"prepend_bos": True} | {key: flat[key] for key in METADATA_KEYS if flat.get(key) is not None},
    }
