"""The reader: a model up to the place that is read, and its tokenizer."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from saerl_fast.errors import InputError, MismatchWarning, ModelMismatchError
from saerl_fast.extract.capture import first_position
from saerl_fast.extract.hooks import Hook, block_output, find_blocks, find_module, hook_width, parse_hook, text_config
from saerl_fast.sae import SAE

logger = logging.getLogger(__name__)

GENERIC_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Names of one class: what it does is all in tokenizer.json."""

CENTRED_POINTS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "embed")
"""What centred writing weights change: the stream and what is added to it."""

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
        """What changes the bits of the activations: configuration, weights, tokenizer."""
        return {
            "model": self.name,
            "model_dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "model_weights": _probe_weights(
                self.model.get_input_embeddings(), *find_blocks(self.model)[: self.hook.layer + 1]
            ),
            "tokenizer": _hash_tokenizer(self.tokenizer),
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
) -> Reader:
    """A reader for the SAE: from a model object, a folder, or a hub id.

    hook: the place to read, by its sae-lens name or module path; layer=L is short for the output of block L; by
    default the place in the SAE's metadata. From a path only the blocks up to there are loaded, and the tokenizer
    comes with it. An object is used as it is and needs a tokenizer.

    Raises ModelMismatchError where model, layer and SAE cannot fit. Warns (MismatchWarning) where the
    SAE says that it was made for another model or layer.
    """
    place = _choose_hook(sae, layer, hook)
    if isinstance(model, nn.Module):
        if tokenizer is None:
            raise InputError("a model object needs tokenizer=...; only a path or an id brings its own")
        if device is not None or dtype is not None:
            raise InputError("device and dtype apply to a model given by path; move the model object yourself")
        loaded, name = model, str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
    else:
        name = os.fspath(model)
        loaded = load_blocks(name, place.layer, device=device, dtype=dtype)
        tokenizer = load_tokenizer(name) if tokenizer is None else tokenizer
    reader = Reader(loaded, tokenizer, place, name)
    _check_fit(reader, sae)
    return reader


def _choose_hook(sae: SAE, layer: int | None, hook: str | None) -> Hook:
    """The place asked for, else the SAE's own; centred where the SAE's model had centred writing weights."""
    if layer is not None and hook is not None:
        raise InputError(f"layer={layer} and hook={hook!r} both say what to read; pass one of them")
    if layer is not None:
        place = block_output(layer)
    elif hook is not None or sae.hook_name is not None:
        place = parse_hook(hook or str(sae.hook_name))
    else:
        raise InputError("the SAE's metadata names no hook; pass layer=L, the block to read, counted from 0")
    settings = sae.metadata.get("model_from_pretrained_kwargs") or {}
    centred = bool(settings.get("center_writing_weights")) and place.point in CENTRED_POINTS
    return replace(place, centred=centred)


def load_blocks(
    name: str, layer: int, *, device: torch.device | str | None = None, dtype: torch.dtype | str | None = None
) -> nn.Module:
    """A pretrained model without its head and without the blocks above ``layer``, in eval mode.

    device: default CUDA where there is one. dtype: default the checkpoint's on CUDA, float32 on a CPU.
    """
    from transformers import AutoConfig, AutoModel

    target = _device(device)
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: transformers cannot load a model from there: {error}") from error
    inner = text_config(config)
    if not 0 <= layer < inner.num_hidden_layers:
        raise ModelMismatchError(f"layer {layer} is out of range: {name} has blocks 0 to {inner.num_hidden_layers - 1}")
    inner.num_hidden_layers = layer + 1
    if getattr(inner, "layer_types", None):
        inner.layer_types = inner.layer_types[: layer + 1]
    wanted = dtype if dtype is not None else ("auto" if target.type == "cuda" else torch.float32)
    with _quiet_loading():
        model = AutoModel.from_pretrained(name, config=config, dtype=wanted)
    return model.to(target).eval()  # type: ignore[no-any-return]


def _device(wanted: torch.device | str | None) -> torch.device:
    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise InputError(f"device {wanted!r} is not one torch knows: {error}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {wanted!r} was asked for, but torch sees no CUDA device")
    return device


def load_tokenizer(name: str | os.PathLike[str], **settings: Any) -> Any:
    """The tokenizer of a folder or hub id, as its own files describe it; ``settings`` as for AutoTokenizer.

    AutoTokenizer of transformers 5 rebuilds the tokenizer of some model types (qwen2 is one) in the class of that
    type, with that type's way of splitting, whatever tokenizer.json says. Files that declare the generic class mean
    tokenizer.json, and are loaded by it.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    try:
        declared = get_tokenizer_config(name).get("tokenizer_class")
        kind = PreTrainedTokenizerFast if declared in GENERIC_TOKENIZERS else AutoTokenizer
        return kind.from_pretrained(name, **settings)
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: transformers cannot load a tokenizer from there: {error}") from error


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """transformers reports every tensor of the blocks we leave out as unexpected; that is what we asked for."""
    from transformers.utils import logging as reporting

    level, bar = reporting.get_verbosity(), reporting.is_progress_bar_enabled()
    reporting.set_verbosity_error()
    reporting.disable_progress_bar()
    try:
        yield
    finally:
        reporting.set_verbosity(level)
        if bar:
            reporting.enable_progress_bar()


def _check_fit(reader: Reader, sae: SAE) -> None:
    find_module(reader.model, reader.hook)
    width = hook_width(reader.model, reader.hook)
    if width not in (None, sae.d_in):
        raise ModelMismatchError(
            f"the SAE reads activations of width {sae.d_in}, {reader.hook} of {reader.name} has width {width}"
            + (f"; the SAE was trained on {sae.model_name}" if sae.model_name else "")
        )
    if sae.model_name and not _same_model(sae.model_name, reader.name):
        warnings.warn(
            f"the SAE was trained on {sae.model_name}, the model read is {reader.name}; "
            "features may mean nothing. Check explained variance before relying on them.",
            MismatchWarning,
            stacklevel=4,
        )
    if sae.hook_name and not _means(sae.hook_name, reader.hook):
        warnings.warn(
            f"the SAE was trained on {sae.hook_name}, {reader.hook} is read",
            MismatchWarning,
            stacklevel=4,
        )


def _means(hook_name: str, hook: Hook) -> bool:
    try:
        return parse_hook(hook_name) == replace(hook, centred=False)
    except InputError:
        return False


def _same_model(trained_on: str, read: str) -> bool:
    """Whether a part of the path read ends in the model's own name (hub ids, cache folders, local copies)."""
    wanted = _plain(trained_on.rstrip("/").split("/")[-1])
    return any(_plain(part).endswith(wanted) for part in Path(read).parts)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _probe_weights(*modules: nn.Module) -> str:
    """SHA-256 over names, shapes and an even sample of each parameter: cheap, and sees any training step."""
    digest = hashlib.sha256()
    for name, parameter in (found for module in modules for found in module.named_parameters()):
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // _PROBE_ELEMENTS)].float().cpu().numpy()
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(sample.tobytes())
    return digest.hexdigest()


def _hash_tokenizer(tokenizer: Any) -> str:
    if getattr(tokenizer, "is_fast", False):
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        # how the last call padded and truncated is no part of what the tokenizer is
        content = json.dumps({**state, "padding": None, "truncation": None}, sort_keys=True)
    else:
        content = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    template = getattr(tokenizer, "chat_template", None)
    return hashlib.sha256(json.dumps([content, template]).encode()).hexdigest()
