"""Models and tokenizers from a folder or a hub id: no block above the one that is read, nor its file."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from saerl_fast.errors import FormatError, InputError, MissingDependency, ModelMismatchError
from saerl_fast.extract.hooks import text_config, text_model
from saerl_fast.formats.safetensors_file import read_json

GENERIC_TOKENIZERS = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Names of one class: what it does is all in tokenizer.json."""

DeviceMap = str | Mapping[str, int | str | torch.device]

_INDEX = "model.safetensors.index.json"
_BLOCK = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")
# what stands behind the last block, and never runs; ModernBERT has a norm of its own behind its embedding
_BEHIND = re.compile(
    r"(?:^|(?<!embeddings)\.)(?:lm_head|embed_out|norm|ln_f|final_layer_norm|final_norm|pooler|cls|classifier|score|head)\.(?:\w+\.)*\w+$"
)


def load_blocks(
    name: str,
    layer: int,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    device_map: DeviceMap | None = None,
) -> nn.Module:
    """A pretrained model without its head and without the blocks above ``layer``, in eval mode.

    Of a checkpoint in several files, those that hold only what is left out are neither opened nor fetched; of the
    others the tensors left out are not read. device: default CUDA where there is one. dtype: default the
    checkpoint's on CUDA, float32 on a CPU; "auto": the checkpoint's. device_map: as transformers takes it (needs
    accelerate), instead of a device; all weights must be in memory.

    Raises InputError where nothing can be loaded, ModelMismatchError for a layer that is not there, FormatError
    where the checkpoint lacks weights that are read (transformers would fill them with random numbers).
    """
    from transformers import AutoConfig, AutoModel

    if device is not None and device_map is not None:
        raise InputError(f"device={device!r} and device_map={device_map!r} both say where the model goes; pass one")
    if device_map is not None and find_spec("accelerate") is None:
        raise MissingDependency("device_map needs accelerate: pip install 'saerl-fast[rl]'")
    target = default_device(device)
    _check_placing(device_map)
    _refuse_absent(name)
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(f"{name}: transformers cannot load a model from there: {error}") from error
    _cut_config(config, layer, name)
    wanted = dtype if dtype is not None else ("auto" if target.type == "cuda" else torch.float32)
    placing = {} if device_map is None else {"device_map": device_map}
    with _quiet_loading(), _needed_files(name, layer, config) as source:
        try:
            model, found = AutoModel.from_pretrained(
                source, config=config, dtype=wanted, output_loading_info=True, **placing
            )
        except (OSError, ValueError) as error:
            raise InputError(f"{name}: transformers cannot load the model: {error}") from error
        except KeyError as error:  # a device_map that leaves parts out
            if device_map is None:
                raise
            raise InputError(f"{name}: device_map gives no device for {error.args[0] or 'the model'!r}") from error
    _check_complete(model, layer, found["missing_keys"], name)
    return (model if placing else model.to(target)).eval()  # type: ignore[no-any-return]


def _refuse_absent(name: str) -> None:
    """Raise InputError for a file, and for a path where nothing is; a hub id has one slash at most."""
    path = Path(name)
    if path.is_file():
        raise InputError(f"{name}: the folder of a model is wanted (config.json, weights, tokenizer); got a file")
    if not path.exists() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise InputError(
            f"{name}: no such folder; the folder of a model is wanted, or a hub id such as Qwen/Qwen2.5-0.5B"
        )


def _cut_config(config: Any, layer: int, name: str) -> None:
    """Take the blocks above ``layer`` out of a config."""
    inner = text_config(config)
    if not 0 <= layer < inner.num_hidden_layers:
        raise ModelMismatchError(f"layer {layer} is out of range: {name} has blocks 0 to {inner.num_hidden_layers - 1}")
    inner.num_hidden_layers = layer + 1
    if getattr(inner, "layer_types", None):
        inner.layer_types = inner.layer_types[: layer + 1]


@contextmanager
def _needed_files(name: str, layer: int, config: Any) -> Iterator[str]:
    """The folder or id to load from: where some of a checkpoint's files can be done without, a folder of the rest."""
    from transformers.utils import cached_file

    index = cached_file(name, _INDEX, _raise_exceptions_for_missing_entries=False)
    weight_map = read_json(index)["weight_map"] if index is not None else {}
    needed = {key: file for key, file in weight_map.items() if is_read(key, layer)}
    files = set(needed.values())
    if files == set(weight_map.values()):
        yield name
        return
    if outside := sorted(file for file in files if Path(file).name != file):
        raise FormatError(f"{name}: {_INDEX} names files outside the folder: {outside[:3]}")
    with tempfile.TemporaryDirectory(prefix="saerl-") as folder:
        for file in sorted(files):
            os.symlink(os.path.abspath(cached_file(name, file)), Path(folder) / file)
        kept = {key: file for key, file in weight_map.items() if file in files}
        (Path(folder) / _INDEX).write_text(json.dumps({"metadata": {}, "weight_map": kept}), encoding="utf-8")
        config.save_pretrained(folder)
        yield folder


def is_read(key: str, layer: int) -> bool:
    """Whether a weight, by its name, takes part in what comes out of block ``layer``."""
    block = _BLOCK.search(key)
    return int(block[1]) <= layer if block is not None else _BEHIND.search(key) is None


def _check_complete(model: nn.Module, layer: int, missing: Any, name: str) -> None:
    """Refuse random numbers in place of weights, and weights that are not in memory."""
    run = {id(parameter) for key, parameter in text_model(model).named_parameters() if is_read(key, layer)}
    run |= {id(parameter) for parameter in model.get_input_embeddings().parameters()}  # type: ignore[operator]
    names = dict(model.named_parameters())
    if lacking := sorted(key for key in missing if key in names and id(names[key]) in run):
        raise FormatError(
            f"{name}: the checkpoint lacks {len(lacking)} weights of the model that are read, such as {lacking[0]}; "
            "is it complete, and of this architecture?"
        )
    refuse_weights_elsewhere(model, name)


def refuse_weights_elsewhere(model: nn.Module, name: str) -> None:
    """Raise InputError for weights that are not in the memory of any device: left on disk by a device_map, or none."""
    if away := [key for key, parameter in model.named_parameters() if parameter.device.type == "meta"]:
        raise InputError(
            f"{name}: {len(away)} weights are not in memory, such as {away[0]}: a device_map left them on disk, or "
            "they were never loaded. Give devices with room for all of them"
        )


def default_device(wanted: torch.device | str | None) -> torch.device:
    """Where a model given by path goes."""
    if wanted is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(wanted)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {wanted!r} was asked for, but torch sees no CUDA device")
    return device


def _check_placing(device_map: DeviceMap | None) -> None:
    """Raise InputError for a device that is not there; the words (auto, disk) are left to transformers."""
    if not isinstance(device_map, Mapping):
        return
    for part, wanted in device_map.items():
        if wanted == "disk":
            continue
        try:
            device = torch.device("cuda", wanted) if isinstance(wanted, int) else torch.device(wanted)
        except (RuntimeError, TypeError) as error:
            raise InputError(f"device_map puts {part or 'the model'!r} on {wanted!r}, which is no device") from error
        seen = torch.cuda.device_count()
        if device.type == "cuda" and (device.index or 0) >= seen:
            raise InputError(f"device_map puts {part or 'the model'!r} on {wanted!r}; torch sees {seen} CUDA devices")


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
