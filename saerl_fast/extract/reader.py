"""The reader: a model up to the place that is read, and its tokenizer."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn

from saerl_fast.errors import InputError, MismatchWarning, ModelMismatchError
from saerl_fast.extract.capture import first_position
from saerl_fast.extract.hooks import (
    Hook,
    block_output,
    hook_width,
    is_same_place,
    name_place,
    parse_hook,
    text_config,
    text_model,
)
from saerl_fast.extract.loading import DeviceMap, is_read, load_blocks, load_tokenizer, refuse_weights_elsewhere
from saerl_fast.extract.model_names import same_model
from saerl_fast.sae import SAE

logger = logging.getLogger(__name__)

CENTRED_POINTS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "embed")
"""What centred writing weights change: the stream and what is added to it."""

UNREAD_SETTINGS = ("_name_or_path", "transformers_version", "architectures", "dtype", "num_hidden_layers", "n_layer")
"""Settings of a config that change no activation, or are recorded by themselves."""

_PROBE_ELEMENTS = 1024


@dataclass(frozen=True)
class Reader:
    """A model, its tokenizer, the place that is read, and the name to record."""

    model: Any
    tokenizer: Any
    hook: Hook
    name: str

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def max_positions(self) -> int | None:
        """The longest input the model's config allows, in tokens; None where it sets no limit."""
        limit = getattr(text_config(self.model.config), "max_position_embeddings", None)
        return None if limit is None else int(limit) - first_position(self.model)

    @property
    def pad_id(self) -> int:
        """Any valid id will do: padding is masked out, never looked up by id."""
        pad, eos = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return pad if pad is not None else eos if eos is not None else 0

    def fingerprint(self) -> dict[str, str]:
        """What changes the bits of the activations: configuration, weights, where they are, tokenizer."""
        read = [
            (name, parameter)
            for name, parameter in text_model(self.model).named_parameters()
            if is_read(name, self.hook.layer)
        ]
        return {
            "model": self.name,
            "model_config": _hash_config(text_config(self.model.config), self.hook.layer),
            "model_dtype": ",".join(sorted({str(parameter.dtype).removeprefix("torch.") for _, parameter in read})),
            "model_weights": _probe_weights(read),
            "device": ",".join(kind for kind, _ in groupby(parameter.device.type for _, parameter in read)),
            "tokenizer": hash_tokenizer(self.tokenizer),
        }


def make_reader(
    model: nn.Module | str | os.PathLike[str],
    sae: SAE,
    *,
    tokenizer: Any = None,
    layer: int | None = None,
    hook: str | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    device_map: DeviceMap | None = None,
) -> Reader:
    """A reader for the SAE: from a model object, a folder, or a hub id.

    hook: the place to read, by its sae-lens name or module path; layer=L is short for the output of block L; by
    default the place in the SAE's metadata. From a path only the blocks up to there are loaded, and the tokenizer
    comes with it. An object is used as it is and needs a tokenizer.

    Raises ModelMismatchError where model, layer and SAE cannot fit. Warns (MismatchWarning) where the
    SAE says that it was made for another model or layer.
    """
    place = _choose_hook(sae, layer, hook)
    reader = open_reader(model, place, tokenizer=tokenizer, device=device, dtype=dtype, device_map=device_map)
    reader = replace(reader, hook=_centred_for(sae, reader.hook))
    _check_fit(reader, sae)
    return reader


def open_reader(
    model: nn.Module | str | os.PathLike[str],
    place: Hook,
    *,
    tokenizer: Any = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    device_map: DeviceMap | None = None,
) -> Reader:
    """A reader of one place, whatever SAE may read it; ModelMismatchError where the model has no such place."""
    if isinstance(model, nn.Module):
        if tokenizer is None:
            raise InputError("a model object needs tokenizer=...; only a path or an id brings its own")
        if device is not None or dtype is not None or device_map is not None:
            raise InputError("device, dtype and device_map apply to a model given by path; move the object yourself")
        loaded, name = model, str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
        refuse_weights_elsewhere(loaded, name)
    else:
        name = os.fspath(model)
        loaded = load_blocks(name, place.layer, device=device, dtype=dtype, device_map=device_map)
        tokenizer = load_tokenizer(name) if tokenizer is None else tokenizer
    return Reader(loaded, tokenizer, name_place(loaded, place), name)


def _choose_hook(sae: SAE, layer: int | None, hook: str | None) -> Hook:
    """The place asked for, else the SAE's own."""
    if layer is not None and hook is not None:
        raise InputError(f"layer={layer} and hook={hook!r} both say what to read; pass one of them")
    if layer is not None:
        return block_output(layer)
    if hook is not None or sae.hook_name is not None:
        return parse_hook(str(sae.hook_name) if hook is None else hook)
    raise InputError("the SAE's metadata names no hook; pass layer=L, the block to read, counted from 0")


def _centred_for(sae: SAE, place: Hook) -> Hook:
    """The place as the SAE's model held it: centred where that model had centred writing weights."""
    settings = sae.metadata.get("model_from_pretrained_kwargs") or {}
    centred = bool(settings.get("center_writing_weights")) and place.point in CENTRED_POINTS
    return replace(place, centred=centred)


def _check_fit(reader: Reader, sae: SAE) -> None:
    width = hook_width(reader.model, reader.hook)
    if width not in (None, sae.d_in):
        raise ModelMismatchError(
            f"the SAE reads activations of width {sae.d_in}, {reader.hook} of {reader.name} has width {width}"
            + (f"; the SAE was trained on {sae.model_name}" if sae.model_name else "")
        )
    for doubt in mismatches(reader, sae):
        warnings.warn(doubt, MismatchWarning, stacklevel=4)


def mismatches(reader: Reader, sae: SAE) -> list[str]:
    """Where the SAE says that it was made for another model, or another place in it, than what is read."""
    doubts = []
    if sae.model_name and not _is_named(reader.name, sae.model_name):
        found = reader.name
        if found == type(reader.model).__name__:
            found = f"a {found} that does not say which it is"
        doubts.append(
            f"the SAE was trained on {sae.model_name}, the model read is {found}; features may mean nothing. "
            "Check explained variance before relying on them"
        )
    if sae.hook_name and not _means(sae.hook_name, reader):
        doubts.append(f"the SAE was trained on {sae.hook_name}, {reader.hook} is read")
    return doubts


def _is_named(read: str, wanted: str) -> bool:
    """Whether the model read is the wanted one by its name, or by that of the folder that a path leads to."""
    names = [read, str(Path(read).resolve())] if Path(read).is_dir() else [read]
    return any(same_model(wanted, name) for name in names)


def _means(hook_name: str, reader: Reader) -> bool:
    """Whether a name means the place that is read, in this model."""
    try:
        return is_same_place(reader.model, parse_hook(hook_name), reader.hook)
    except InputError:
        return False


def _hash_config(config: Any, layer: int) -> str:
    """SHA-256 over a text config less names and versions; the blocks above ``layer`` make no difference."""
    settings = {name: found for name, found in config.to_dict().items() if name not in UNREAD_SETTINGS}
    settings["layer_types"] = (settings.get("layer_types") or [])[: layer + 1]
    settings["attention"] = getattr(config, "_attn_implementation", None)
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def _probe_weights(parameters: Iterable[tuple[str, nn.Parameter]]) -> str:
    """SHA-256 over names, shapes and an even sample of each parameter: cheap, and sees any training step."""
    digest = hashlib.sha256()
    for name, parameter in parameters:
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // _PROBE_ELEMENTS)].float().cpu().numpy()
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(sample.tobytes())
    return digest.hexdigest()


def hash_tokenizer(tokenizer: Any) -> str:
    """SHA-256 over all that a tokenizer is; how the last call padded and truncated is no part of it."""
    if getattr(tokenizer, "is_fast", False):
        content = _without(tokenizer.backend_tokenizer.to_str(), ("truncation", "padding"))
    else:
        content = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    found = hashlib.sha256(content.encode())
    found.update(b"\n" + json.dumps(getattr(tokenizer, "chat_template", None)).encode())
    return found.hexdigest()


def _without(state: str, keys: Iterable[str]) -> str:
    """A JSON object, as text, without some values at its top, each of them before any other of that name.

    Not parsed as a whole: the vocabularies of large models take half a second.
    """
    for key in keys:
        before, name, after = state.partition(f'"{key}":')
        if name:
            state = f"{before}{name}{after[json.JSONDecoder().raw_decode(after)[1] :]}"
    return state
